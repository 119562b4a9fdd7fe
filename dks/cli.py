"""The command line: `dks` and its subcommands, and what `train.py` calls. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dks.config.errors import RequestError

if TYPE_CHECKING:
    from dks.sweeps.manifest import Manifest
    from dks.tables.study import Study

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

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
    _add_sweep_commands(commands.add_parser("sweep", help="named sweeps: list, plan, run, status, wait, retry, cancel"))
    table = _reading(
        commands,
        "table",
        "the table of a sweep, from whatever runs exist",
        _table,
        "dks table table3\n  dks table paper --format md\n  dks table table3 data=digits recipe.epochs=2 --epoch best\n"
        "  dks table table1 --store sqlite:///mlflow.db --format latex --output table1.tex",
    )
    table.add_argument("--format", choices=("terminal", "md", "latex", "html", "csv"), default="terminal")
    table.add_argument("--output", metavar="FILE", help="write it there, and to FILE.json where its numbers come from")
    figure = _reading(
        commands,
        "figure",
        "figures of a sweep, as SVG, PDF and PNG",
        _figure,
        "dks figure figure3 --kind curves\n  dks figure table1 --output figures",
    )
    figure.add_argument("--kind", choices=("curves", "spread", "dots", "cost"), help="default: all four")
    figure.add_argument("--output", metavar="DIR", help="default: results/NAME/figures")
    report = _reading(
        commands,
        "report",
        "one HTML page with the tables, the curves and what is missing; it needs no network",
        _report,
        "dks report paper\n  dks report table3 --output table3.html",
    )
    report.add_argument("--output", metavar="FILE", help="default: results/NAME/report.html")
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


def _reading(
    commands: _Commands, name: str, what: str, run: Callable[[argparse.Namespace], int], examples: str
) -> argparse.ArgumentParser:
    """A command that shows what the runs of a sweep gave."""
    added = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.add_argument("name", help="one of those that `dks sweep list` shows")
    added.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="those that the sweep was run with, if there were any")
    added.add_argument("--store", metavar="URI", help="read an MLflow store, not the folders of the runs")
    added.add_argument("--experiment", default="dks", metavar="NAME", help="in that store (default: dks)")
    added.add_argument("--results-dir", default="results", metavar="DIR", help="where sweeps are kept (default: results)")
    if name != "figure":
        added.add_argument(
            "--epoch",
            choices=("last", "best"),
            default="last",
            help="which epoch of a run counts (default: last; best is chosen by the test error itself, and so optimistic)",
        )
    added.set_defaults(run=run)
    return added


def _add_sweep_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, what: str, run: Callable[[argparse.Namespace], int], examples: str = "") -> argparse.ArgumentParser:
        added = actions.add_parser(
            name, help=what, description=f"{what}.", epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.set_defaults(run=run)
        return added

    listing = action("list", "the sweeps there are, how many cells each has, and how many are done", _sweep_list)
    planning = action(
        "plan",
        "what would run, how long it would take, and what exists already; nothing is launched",
        _sweep_plan,
        "examples:\n  dks sweep plan table3\n  dks sweep plan paper --json\n"
        "  dks sweep plan table3 data=digits backbone=resnet8 recipe.epochs=2 seed=1,2",
    )
    running = action(
        "run",
        "run what is missing, then show the table",
        _sweep_run,
        "examples:\n  dks sweep run table3 data.root=data data.download=true\n"
        "  dks sweep run table3 hydra.launcher.slots=2\n"
        "  dks sweep run table3 --launcher slurm hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1\n"
        "  dks sweep run table3 data=digits backbone=resnet8 recipe.epochs=2 seed=1,2",
    )
    retrying = action("retry", "run again what failed, was killed or got lost, and nothing new", _sweep_retry)
    states = action("status", "where every cell stands", _sweep_status)
    waiting = action("wait", "wait until no cell is queued or running, then show the table", _sweep_wait)
    cancelling = action("cancel", "stop the running cells and withdraw the queued ones; they can go on later", _sweep_cancel)
    for added in (planning, running):
        added.add_argument("name", help="one of those that `dks sweep list` shows, or of a sweep begun in results/")
        added.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="reach every cell")
    for added in (retrying, states, waiting, cancelling):
        added.add_argument("name", help="the sweep")
        added.add_argument(
            "overrides", nargs="*", metavar="KEY=VALUE", help="those that the sweep was run with, if there were any"
        )
    for added in (states, waiting, cancelling, retrying, listing):
        added.add_argument("--results-dir", default="results", metavar="DIR", help="where sweeps are kept (default: results)")
    for added in (planning, states, listing):
        added.add_argument("--json", action="store_true", help="for programs")
    planning.add_argument(
        "--probe",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="time for measuring networks that no earlier run tells of (default: 5; 0: estimate from FLOPs alone)",
    )
    running.add_argument("--dry-run", action="store_true", help="the same as plan")
    for added in (running, retrying):
        added.add_argument("--launcher", choices=("local", "slurm"), help="where cells run (default: local)")
        added.add_argument(
            "--retries",
            type=_at_least(0),
            default=0,
            metavar="N",
            help="try a cell that fails up to N times again (default: 0)",
        )
        failures = added.add_mutually_exclusive_group()
        failures.add_argument("--fail-fast", action="store_true", help="begin no further cell once one has failed")
        failures.add_argument("--max-failures", type=_at_least(1), metavar="N", help="... once N have failed (default: go on)")
    waiting.add_argument("--every", type=_seconds, default=5.0, metavar="SECONDS", help="between two looks (default: 5)")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}")
        return int(text)

    return number


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds, at least 0")
    return value


def _evaluate(options: argparse.Namespace) -> int:
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


def _study(options: argparse.Namespace) -> Study:
    from dks.tables.study import Study

    return Study.open(options.name, options.overrides, options.store, options.results_dir, options.experiment)


def _table(options: argparse.Namespace) -> int:
    from dks.tables.model import Epoch
    from dks.tables.render import TEXT_FORMATS
    from dks.tables.results import show, write

    if options.output and options.format == "terminal":
        raise RequestError(f"--output {options.output} needs --format: {', '.join(TEXT_FORMATS)}")
    study = _study(options)
    tables = study.tables(Epoch(options.epoch))
    if options.output:
        for path in write(study, tables, options.format, Path(options.output)):
            print(f"written to {path}")
        return DONE
    for number, table in enumerate(tables):
        if options.format == "terminal":
            show(table)
        else:
            sys.stdout.write(("\n" if number and options.format != "csv" else "") + TEXT_FORMATS[options.format](table))
    return DONE


def _figure(options: argparse.Namespace) -> int:
    from dks.figures import KINDS, draw, write

    study = _study(options)
    drawn = False
    for table in study.tables():
        folder = Path(options.output or Path(options.results_dir) / table.name / "figures")
        for kind in [options.kind] if options.kind else KINDS:
            try:
                figure = draw(kind, table, study.source)
            except RequestError as error:  # nothing to draw: of one of many that is worth a line, no more
                print(f"{table.name}: {kind}: {error}", file=sys.stderr)
                continue
            for path in write(figure, folder, f"{table.name}-{kind}"):
                print(f"written to {path}")
            drawn = True
    return DONE if drawn else WRONG_REQUEST


def _report(options: argparse.Namespace) -> int:
    from dks.report import write_report
    from dks.tables.model import Epoch

    study = _study(options)
    path = Path(options.output or Path(options.results_dir) / study.name / "report.html")
    print(f"written to {write_report(study, path, Epoch(options.epoch))}")
    return DONE


def _sweep_list(options: argparse.Namespace) -> int:
    from dks.sweeps.listing import listed

    print(listed(options.results_dir, options.json))
    return DONE


def _sweep_plan(options: argparse.Namespace) -> int:
    show = "json" if options.json else "text"
    return _named_sweep(options, f"hydra.sweeper.show={show}", f"hydra.sweeper.probe={options.probe}")


def _sweep_run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _named_sweep(options, "hydra.sweeper.show=text")
    return _named_sweep(options, *_policy(options))


def _sweep_retry(options: argparse.Namespace) -> int:
    launcher = [item for item in options.overrides if item.startswith("hydra.launcher.")]
    options.overrides = [item for item in options.overrides if item not in launcher]
    begun = _begun(options)
    return _ask_for(begun.named, [*begun.request, *launcher], "hydra.sweeper.only_unsuccessful=true", *_policy(options))


def _policy(options: argparse.Namespace) -> list[str]:
    failures = 1 if options.fail_fast else options.max_failures
    launcher = [] if options.launcher is None else [f"hydra/launcher={options.launcher}"]
    limit = [] if failures is None else [f"hydra.sweeper.max_failures={failures}"]
    return [*launcher, *limit, f"hydra.sweeper.retries={options.retries}"]


def _named_sweep(options: argparse.Namespace, *more: str) -> int:
    from dks.sweeps.files import names, read

    name, overrides = options.name, options.overrides
    if name not in names():
        from dks.sweeps import manifest

        results_dir = getattr(options, "results_dir", "results")
        if name in manifest.known(results_dir):  # an ad-hoc sweep, or a named one with overrides, asked for again
            begun = manifest.read(results_dir, name)
            name, overrides = begun.named, [*begun.request, *overrides]
        else:
            read(name)  # says which names there are
    return _ask_for(name, overrides, *more)


def _ask_for(name: str | None, overrides: Sequence[str], *more: str) -> int:
    """Through Hydra's command line, with `more` for Hydra; name: of the sweep's file, None for an ad-hoc one."""
    named = [] if name is None else [f"hydra.sweeper.named={name}"]
    sys.argv = ["dks sweep", "-m", *named, *more, *overrides]
    return _hydra_main()


def _begun(options: argparse.Namespace) -> Manifest:
    """The manifest of the sweep that the options mean."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dks.sweeps import manifest
    from dks.sweeps.files import names, read
    from dks.sweeps.request import grid_of

    name = options.name
    if options.overrides:
        if name not in names():
            raise RequestError(f"{name} is no named sweep, so it takes no overrides; choose from {', '.join(names())}")
        name = grid_of(read(name), options.overrides, OverridesParser.create()).name
    return manifest.read(options.results_dir, name)


def _sweep_status(options: argparse.Namespace) -> int:
    from rich.console import Console

    from dks.sweeps.status import status

    seen = status(options.results_dir, _begun(options).name)
    if options.json:
        print(seen.to_json())
    else:
        Console(highlight=False).print(str(seen), soft_wrap=True)
    return DONE


def _sweep_wait(options: argparse.Namespace) -> int:
    from rich.console import Console

    from dks.sweeps.status import status, wait
    from dks.tables.results import show, write_results
    from dks.tracking.mlflow_sink import end_sweep_run

    name = _begun(options).name
    seen = wait(lambda: status(options.results_dir, name), options.every, Console(stderr=True))
    begun = next((each.folder for each in seen.standings.values() if each.record is not None), None)
    if begun is not None:
        try:
            end_sweep_run(begun.read_config().tracking, seen.sweep.name, well=not seen.exit_status)
        except RequestError as error:  # the runs and their table are there without it
            print(f"MLflow was not told that the sweep is over: {error}", file=sys.stderr)
    for table in write_results(options.results_dir, name):
        show(table)
    if seen.sweep.undecided:
        print(f"dks sweep run {name} goes on: {'; '.join(seen.sweep.undecided)}", file=sys.stderr)
    return seen.exit_status


def _sweep_cancel(options: argparse.Namespace) -> int:
    from dks.sweeps.scheduler import Scheduler
    from dks.sweeps.status import cancel, status

    print(cancel(status(options.results_dir, _begun(options).name), Scheduler()))
    return DONE


def _run(config: object) -> None:
    """What Hydra's launchers call for every cell, here or on another machine."""
    from hydra.core.hydra_config import HydraConfig

    from dks.sweeps.worker import run_cells

    # The frozen configuration in the run's folder counts, not what Hydra composed again.
    run_cells([Path(HydraConfig.get().runtime.output_dir)])


def _hydra_main() -> int:
    import hydra

    from dks.config.compose import register_schema
    from dks.config.files import declarations

    register_schema()
    if int(os.environ.get("RANK", "0")):  # under torchrun rank 0 plans and records, the others train along
        from dks.training.run import follow

        follow()
        return DONE
    with _leading():
        hydra.main(config_path=str(declarations("conf")), config_name="config", version_base="1.3")(_run)()
    return DONE


def _leading() -> AbstractContextManager[None]:
    """Under torchrun, rank 0 tells the others when there is no more to do."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return nullcontext()
    from dks.world import leading

    return leading()


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
