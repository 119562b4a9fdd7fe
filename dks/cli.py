"""The command line: `dks`, and what `train.py` calls. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from dks.commands import bench, doctor, extensions, reading, sweeps, tracking, weights
from dks.commands.exit_status import DONE, FAILED, INTERRUPTED, WRONG_REQUEST
from dks.commands.hydra_main import hydra_main
from dks.tracking import damage
from dks.tracking.disk import FORBIDDEN, DiskFull


def train(arguments: Sequence[str] | None = None) -> None:
    """`train.py` and `dks train`: Hydra's command line. Leaves the program with its exit status."""
    if arguments is not None:
        sys.argv = [sys.argv[0], *arguments]
    sys.exit(_reported(hydra_main))


def main(arguments: Sequence[str] | None = None) -> None:
    """`dks`. Leaves the program with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        sys.argv = ["dks train", *given[1:]]
        train()
    parser = _parser()
    # argparse takes no more positional arguments once an option stood between them, as in `plan NAME --json key=value`.
    options, rest = parser.parse_known_args(given)
    if rest and (not hasattr(options, "overrides") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    sys.exit(_reported(lambda: options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dks",
        description="Ablations of deep supervision, knowledge synergy and distillation.",
        epilog="example: dks train -m aux=ours,shallow,narrow strategy=topdown,bottomup,bidir",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Listed for --help; `main` hands everything behind `train` to Hydra.
    commands.add_parser("train", help="one run, or with -m a sweep and its table (as python train.py)")
    for family in (sweeps, reading, weights, tracking, extensions, doctor, bench):
        family.add(commands)
    return parser


def _reported(command: Callable[[], int]) -> int:
    """Run a command. A wrong request is one line a problem, on standard error, and exit status 2; any other error is one
    line and 1. The traceback is shown on request. Files that were found damaged are a line each.
    """
    # Hydra prints errors in its own way and exits with 1, unless it is asked for the exception itself.
    asked = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with damage.shown():
            return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except DiskFull as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Exception as error:
        if asked == "1":
            raise
        if isinstance(error, OSError) and error.errno in FORBIDDEN:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            return WRONG_REQUEST
        from dks.config.compose import explain_request

        problems = explain_request(error)
        for problem in problems or (f"{type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 shows where)",):
            print(f"error: {problem}", file=sys.stderr)
        return WRONG_REQUEST if problems else FAILED
    finally:
        if asked is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked
