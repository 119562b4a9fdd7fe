"""The exit statuses of `dks`, for all commands the same."""

from dks.machine.interruption import STATUS

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, STATUS
