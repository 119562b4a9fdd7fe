"""The subcommands of `dks`, one module a family.

`add` declares them, and nothing heavy is imported before one runs.
"""
