"""The exit status of many commands, and what their one line on standard error names."""

from __future__ import annotations

import shlex
from pathlib import Path

from support.program import dks

TINY = (
    "data=synthetic data.image_size=8 data.train_images=64 data.test_images=32 data.pad=1 "
    "recipe.batch_size=16 recipe.epochs=2 threads=1 tracking=off"
)
METHODS = "baseline ds dks kd_c1 kd_c1_ds kd_c2c3_ds single"
SWEEPS = "figure3 methods noise paper quickstart resnet1202 strategies table1 table2 table3 table4 table5 table6"

# Help and the version: whole command lines.
HELP = (
    "--help",
    "-h",
    "--version",
    "sweep --help",
    "sweep list --help",
    "sweep plan --help",
    "sweep run --help",
    "sweep retry --help",
    "sweep status --help",
    "sweep wait --help",
    "sweep cancel --help",
    "table --help",
    "figure --help",
    "report --help",
    "evaluate --help",
    "export --help",
    "sync --help",
    "runs --help",
    "runs migrate --help",
    "extensions --help",
    "doctor --help",
    "bench --help",
    "completion --help",
)
# Requests that are done in an empty folder.
DONE = (
    "sweep list",
    "sweep list --json",
    "sync",
    "sync --json",
    "runs migrate --dry-run",
    "runs migrate --json",
    "extensions",
    "extensions --json",
    "bench --list",
    "bench --list --json",
    "completion bash",
    "completion zsh",
    "completion fish",
    "table methods --format csv",
    "table methods --json",
    "report methods",
    "figure methods",
    "figure methods --json",
    "train --help",
    "train --cfg job",
    "train --cfg hydra",
    "train --info searchpath",
    "train --hydra-help",
    "train --version",
    "train -m seed=1,2 --cfg job",
    "sweep run methods --dry-run seed=1 method=dks",
    "sweep plan methods seed=1 method=dks --probe 0 -q",
    "sweep plan methods seed=1 method=dks --probe 0 -v",
    "--debug sweep list",
    "sweep list --debug",
)
# One after another in one folder: runs that end well, that fail, and what is asked of them.
RUNS = (
    f"train {TINY} method=baseline seed=1",
    f"train {TINY} method=baseline seed=1",
    f"train {TINY} method=baseline seed=1 -q",
    f"train {TINY} method=baseline recipe.lr=1e30",
    f"train -m {TINY} method=baseline recipe.lr=0.1,1e30 hydra/launcher=basic sweep=mixed",
    f"train -m {TINY} method=baseline recipe.lr=1e30,2e30 hydra/launcher=basic hydra.sweeper.max_failures=1 sweep=failed",
    "sweep status mixed",
    "sweep status mixed --json",
    "sweep wait mixed",
    "sweep retry mixed",
    "sweep cancel mixed",
    "sweep status typo",
    "table mixed",
    "table mixed --format md --output table.md",
    "table typo",
    "report mixed",
    "figure mixed --kind curves --json",
    f"sweep run methods {TINY} seed=1 method=baseline hydra/launcher=basic",
    "sweep status methods",
    "sweep status methods seed=2",
    f"sweep status methods {TINY} seed=1 method=baseline",
    "sweep list",
    "sync",
    "sync mixed",
    "sync mixed --store sqlite:///again.db --json",
    "table mixed --store sqlite:///again.db",
    "table mixed --store sqlite:///none.db",
    "runs migrate --dry-run",
)
# Requests that are wrong, in an empty folder: the command line -> what its line on standard error has to name.
WRONG = {
    # commands, actions, options
    "": "",
    "trian": "trian train sweep table",
    "sweep": "",
    "sweep walk": "walk list plan run status wait retry cancel",
    "runs": "",
    "sweep run": "",
    "table": "",
    "export": "",
    "sweep list --colour": "--colour",
    "sweep run methods --colour": "--colour",
    "sweep plan methods --probe fast": "--probe",
    "sweep run methods --retries -1": "--retries -1",
    "sweep run methods --max-failures 0": "--max-failures 0",
    "sweep run methods --fail-fast --max-failures 2": "--fail-fast --max-failures",
    "sweep run methods --launcher cloud": "--launcher cloud local slurm",
    "sweep run methods --code other": "--code other same",
    "sweep plan methods -q -v": "-q -v",
    "table methods --format pdf": "--format pdf terminal md latex html csv",
    "table methods --format md --json": "--format --json",
    "table methods --epoch first": "--epoch first last best",
    "figure methods --kind pie": "--kind pie curves spread dots cost",
    "export 0123456789ab --format jpeg": "--format jpeg safetensors onnx program",
    "completion tcsh": "tcsh bash zsh fish",
    "bench nothing": "nothing",
    # names
    "sweep plan nothing": f"nothing {SWEEPS}",
    "sweep run nothing": f"nothing {SWEEPS}",
    "sweep status nothing": "nothing",
    "sweep status methods": "methods",
    "sweep cancel methods": "methods",
    "sweep retry methods": "methods",
    "sweep wait methods": "methods",
    "table nothing": "nothing",
    "report nothing": "nothing",
    "figure nothing": "nothing",
    "sync nothing": "nothing",
    "evaluate 0123456789ab": "0123456789ab",
    "export 0123456789ab --format onnx": "0123456789ab",
    "evaluate": "CELL_ID --weights",
    "evaluate --weights none.pt backbone=resnet8 data=digits": "none.pt",
    # keys, choices, values
    "train recipe.learning_rate=1": "recipe.learning_rate",
    "train colour=red": "colour",
    "train method=dsk": f"method dsk {METHODS}",
    "train backbone=resnet9": "backbone resnet9 resnet8 resnet20 wrn28_4 densenet40_12 mobilenet resnet152",
    "train aux=deep": "aux deep ours shallow narrow ap_2fc ap_conv_2fc none",
    "train aux=ours aux_design=narrow": "aux aux_design ours narrow",
    "train strategy=sideways": "strategy sideways none topdown bottomup bidir",
    "train data=mnist": "data mnist digits cifar10 cifar100 parquet imagefolder imagenet synthetic",
    "train compute.precision=int8": "compute.precision int8 fp32 bf16 fp16",
    "train recipe.epochs=two": "recipe.epochs two",
    "train recipe.epochs=15.0": "recipe.epochs 15.0",
    "train recipe.epochs=0": "recipe.epochs",
    "train recipe.lr=-1": "recipe.lr",
    "train recipe.lr=nan": "recipe.lr",
    "train seed=-1": "seed",
    "train label_noise.ratio=0.5": "label_noise",
    "train noise=uniform label_noise.ratio=1": "label_noise.ratio",
    "train aux_positions.at=[c9]": "c9",
    "train teacher=checkpoint": "kd_teacher.path kd_teacher.cell",
    "train data=cifar10": "data.root",
    "train data=parquet": "data.root",
    "train data=imagefolder data.root=nowhere": "nowhere",
    "train device=tpu": "device tpu",
    "train seed=1,2": "-m",
    "train seed": "seed",
    "train recipe.milestones=[1": "recipe.milestones",
    "train -m seed=1,2,1": "seed=1,2,1",
    "train -m seed=": "seed",
    "train -m recipe.lr=interval(0,1)": "recipe.lr=interval(0,1)",
    "train -m aux=ours,narrow aux_design=ours,narrow": "aux aux_design",
    "train -m method=dks,dsk": f"dsk {METHODS}",
    "train -m seed=range(10000000)": "seed=range(10000000)",
    "sweep plan methods --json backbone=resnet9": "resnet9",
    "sweep plan methods --json recipe.lr=fast": "recipe.lr fast",
    "sweep run methods data=cifar10 method=dks": "data.root",
    "train tracking=server": "tracking.uri MLFLOW_TRACKING_URI",
    "train tracking.uri=ftp://host": "tracking.uri",
    "table methods --store ftp://host": "ftp",
}


def _facts(line: str, words: str, folder: Path) -> str:
    """The status; whether there is output; for a wrong request the lines on standard error; the command; the words named."""
    ran = dks(*shlex.split(line), folder=folder)
    lines = f"{ran.err.count(chr(10))} line(s)" if ran.status == 2 else "-"
    named = [word for word in words.split() if word in ran.err]
    return (
        " | ".join((str(ran.status), "out" if ran.out else "-", lines, line.replace(TINY, "TINY"), " ".join(named))).rstrip(
            " |"
        )
        + "\n"
    )


def wrong_and_help(folder: Path) -> str:
    """Requests that are wrong, and help. Nothing is written by any of them."""
    facts = "".join(_facts(line, words, folder) for line, words in [*dict.fromkeys(HELP, "").items(), *WRONG.items()])
    left = sorted(path.name for path in folder.iterdir())
    return f"{facts}left behind: {left}\n"


def done(folder: Path) -> str:
    """What is done in an empty folder, each in one of its own."""
    facts = []
    for number, line in enumerate(DONE):
        (own := folder / str(number)).mkdir()
        facts.append(_facts(line, "", own))
    return "".join(facts)


def runs(folder: Path) -> str:
    """Runs, and what is asked of them."""
    return "".join(_facts(line, "", folder) for line in RUNS)
