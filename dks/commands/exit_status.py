"""The exit statuses of `dks`, for all commands the same."""

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
