"""One run, or with -m a sweep and its table.

Python train.py -m aux=ours,shallow,narrow strategy=topdown,bottomup,bidir
"""

from dks.__main__ import train

if __name__ == "__main__":
    train()
