"""The command line: `dks`, and what `train.py` calls. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from dks import __version__
from dks.commands import bench, completion, doctor, extensions, reading, sweeps, tracking, weights
from dks.commands.exit_status import DONE, FAILED, INTERRUPTED, WRONG_REQUEST
from dks.commands.hydra_main import hydra_main
from dks.commands.options import add_loudness, examples
from dks.tracking import damage
from dks.tracking.disk import FORBIDDEN, DiskFull


def train(arguments: Sequence[str] | None = None) -> None:
    """`train.py` and `dks train`: Hydra's command line. Leaves the program with its exit status."""
    if arguments is not None:
        sys.argv = [sys.argv[0], *arguments]
    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_loudness(ours)
    options, hydras = ours.parse_known_args(sys.argv[1:])
    sys.argv = [sys.argv[0], *hydras]
    options.run = lambda _: hydra_main()
    sys.exit(_reported(lambda: _spoken(options)))


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
    sys.exit(_reported(lambda: _spoken(options)))


def _spoken(options: argparse.Namespace) -> int:
    """Run a command as loudly as it is asked to."""
    if not (getattr(options, "quiet", False) or getattr(options, "verbose", False)):
        return int(options.run(options))
    from dks.terminal import Loudness, speaking

    with speaking(Loudness.quiet if options.quiet else Loudness.verbose):
        return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dks",
        description="Ablations of deep supervision, knowledge synergy and distillation.",
        epilog=examples(
            "dks train -m aux=ours,shallow,narrow strategy=topdown,bottomup,bidir", "dks sweep run methods", "dks table methods"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dks {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Listed for --help; `main` hands everything behind `train` to Hydra.
    commands.add_parser("train", help="one run, or with -m a sweep and its table (as python train.py)")
    for family in (sweeps, reading, weights, tracking, extensions, doctor, bench):
        family.add(commands)
    completion.add(commands, parser)
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
            status = command()
            sys.stdout.flush()  # a reader that has gone is noticed here, and not when Python ends
            return status
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
