"""The command line: `dks` and its subcommands, and what `train.py` calls. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130


def train(arguments: Sequence[str] | None = None) -> None:
    """`train.py` and `dks train`: Hydra's command line. Leaves the program with its exit status."""
    if arguments is not None:
        sys.argv = [sys.argv[0], *arguments]
    sys.exit(_reported(_hydra_main))


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
    sweep = commands.add_parser("sweep", help="named sweeps: list, plan, run").add_subparsers(metavar="ACTION", required=True)
    listing = sweep.add_parser("list", help="the sweeps there are")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(run=_sweep_list)
    for action, what in (("plan", "show what would run"), ("run", "run what is missing, then show the table")):
        named = sweep.add_parser(action, help=what)
        named.add_argument("name", help="one of those that `dks sweep list` shows")
        named.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="reach every cell")
        named.set_defaults(run=_sweep_plan if action == "plan" else _sweep_run)
        if action == "plan":
            named.add_argument("--json", action="store_true", help="for programs")
    table = commands.add_parser("table", help="the table of a sweep, from whatever runs exist")
    table.add_argument("sweep", help="its name: a folder in results/")
    table.add_argument("--format", choices=("terminal", "md", "latex", "csv"), default="terminal")
    table.add_argument("--results-dir", default="results", metavar="DIR", help="where sweeps are kept (default: results)")
    table.set_defaults(run=_table)
    evaluate = commands.add_parser(
        "evaluate",
        help="test a finished run again, or a checkpoint on a folder of images",
        usage="dks evaluate CELL_ID [--runs-dir DIR] [options]\n       "
        "dks evaluate --weights FILE --backbone NAME --images FOLDER [--protocol NAME] [options]",
    )
    evaluate.add_argument("cell_id", nargs="?", metavar="CELL_ID", help="a finished run, tested on its own test set")
    evaluate.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    evaluate.add_argument("--weights", metavar="FILE", help="a state dict, as torch.save or safetensors wrote it")
    evaluate.add_argument("--backbone", metavar="NAME", help="the network that the weights belong to, for example resnet18")
    evaluate.add_argument("--images", metavar="FOLDER", help="one subfolder for each class, in FOLDER/val or in FOLDER itself")
    evaluate.add_argument(
        "--protocol",
        choices=("paper", "torchvision"),
        help="paper (default): the whole image becomes 256x256 pixels; torchvision: its shorter side 256; both take the centre",
    )
    evaluate.add_argument(
        "--workers", type=_at_least(0), metavar="N", help="processes that decode image files (default: all cores)"
    )
    evaluate.add_argument("--batch-size", type=_at_least(1), metavar="N", help="images a step (default: the run's, or 128)")
    evaluate.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: the run's, or auto)")
    evaluate.add_argument("--json", action="store_true", help="for programs")
    evaluate.set_defaults(run=_evaluate)
    export = commands.add_parser("export", help="write the network of a finished run, without its branches, to a file")
    export.add_argument("cell_id", metavar="CELL_ID", help="a finished run")
    export.add_argument(
        "--format", choices=("safetensors", "onnx", "program"), required=True, help="program: for torch.export.load"
    )
    export.add_argument("--output", metavar="FILE", help="default: CELL_ID.safetensors, .onnx or .pt2, in this folder")
    export.add_argument("--force", action="store_true", help="replace the file if there is one")
    export.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    export.set_defaults(run=_export)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}")
        return int(text)

    return number


def _evaluate(options: argparse.Namespace) -> int:
    from dks.config.errors import RequestError

    files = {"--weights": options.weights, "--backbone": options.backbone, "--images": options.images}
    more = {**files, "--protocol": options.protocol}
    if options.cell_id is not None and (given := [name for name, value in more.items() if value is not None]):
        raise RequestError(f"a run is tested on its own test set; drop {', '.join(given)}, or CELL_ID")
    if options.cell_id is None and (lacking := [name for name, value in files.items() if value is None]):
        raise RequestError(f"give CELL_ID, or --weights, --backbone and --images ({', '.join(lacking)} not given)")
    from dks.evaluation import Protocol, evaluate_file, evaluate_run

    if options.cell_id is not None:
        found = evaluate_run(options.runs_dir, options.cell_id, options.device, options.batch_size, options.workers)
    else:
        found = evaluate_file(
            options.weights,
            options.backbone,
            options.images,
            Protocol(options.protocol or "paper"),
            options.device or "auto",
            options.batch_size or 128,
            options.workers,
        )
    print(found.to_json() if options.json else found)
    return DONE


def _export(options: argparse.Namespace) -> int:
    from dks.export import Format, export

    path = export(options.runs_dir, options.cell_id, Format(options.format), options.output, options.force)
    print(f"written to {path}")
    return DONE


def _table(options: argparse.Namespace) -> int:
    from dks.tables.results import TEXT_FORMATS, show, sweep_table

    table, _ = sweep_table(options.results_dir, options.sweep)
    if options.format == "terminal":
        show(table)
    else:
        sys.stdout.write(TEXT_FORMATS[options.format](table))
    return DONE


def _sweep_list(options: argparse.Namespace) -> int:
    from dks.sweeps.files import names, read

    sweeps = [read(name) for name in names()]
    if options.json:
        import json

        print(json.dumps([{"name": sweep.name, "title": sweep.title} for sweep in sweeps], indent=1))
    else:
        print("\n".join(f"{sweep.name:<12} {sweep.title}" for sweep in sweeps))
    return DONE


def _sweep_plan(options: argparse.Namespace) -> int:
    return _named_sweep(options, f"hydra.sweeper.show={'json' if options.json else 'text'}")


def _sweep_run(options: argparse.Namespace) -> int:
    return _named_sweep(options)


def _named_sweep(options: argparse.Namespace, *more: str) -> int:
    from dks.sweeps.files import read

    read(options.name)  # says which names there are, before Hydra starts
    sys.argv = ["dks sweep", "-m", f"hydra.sweeper.named={options.name}", *more, *options.overrides]
    return _hydra_main()


def _run(config: object) -> object:
    """What Hydra's launchers call for every cell, here or on another machine."""
    from hydra.core.hydra_config import HydraConfig

    from dks.training.run import run_cell

    # The frozen configuration in the run's folder counts, not what Hydra composed again.
    return run_cell(HydraConfig.get().runtime.output_dir)


def _hydra_main() -> int:
    import hydra

    from dks.config.compose import register_schema
    from dks.config.files import declarations

    register_schema()
    if int(os.environ.get("RANK", "0")):  # under torchrun rank 0 plans and records, the others train along
        from dks.training.run import follow

        follow()
        return DONE
    with _leading_the_others():
        hydra.main(config_path=str(declarations("conf")), config_name="config", version_base="1.3")(_run)()
    return DONE


@contextmanager
def _leading_the_others() -> Iterator[None]:
    """Under torchrun, tell the processes that follow when there is no more to do, unless they have stopped or hang already."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from dks.world import Broken, World

    stopped = False
    try:
        yield
    except Broken:
        stopped = True
        raise
    except SystemExit as left:
        stopped = left.code == INTERRUPTED
        raise
    finally:
        if not stopped:
            world = World.join()
            world.share(None)
            world.leave()


def _reported(command: Callable[[], int]) -> int:
    """Run a command. A wrong request is one line a problem, on standard error, and exit status 2; any other error is one
    line and 1. The traceback is shown on request.
    """
    # Hydra prints errors in its own way and exits with 1, unless it is asked for the exception itself.
    asked = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if asked == "1":
            raise
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
