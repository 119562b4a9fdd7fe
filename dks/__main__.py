"""`python -m dks`: the same as the command `dks`."""

from dks.cli import main

if __name__ == "__main__":
    main()
