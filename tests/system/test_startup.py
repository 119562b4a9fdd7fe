"""What a program imports before it has need of it, and trials of the benchmarks that measure its
start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, sampled, start
from tests.support.command_line import commands

HEAVY = ("torch", "torchvision", "mlflow", "pandas", "scipy", "sklearn", "matplotlib")
# Runs a command and says on standard error which of the modules it has imported.
PROGRAM = """
import sys
from dks.cli.main import main
names = sys.argv[1].split(",")
try:
    main(sys.argv[2:])
finally:
    print("imported:", *(name for name in names if name in sys.modules), file=sys.stderr)
"""


def imported(
    folder: Path, *arguments: str, of: tuple[str, ...] = HEAVY, status: int = 0, **variables: str
) -> tuple[set[str], str]:
    """Which of these modules `dks ARGUMENTS` imports until it ends with that status, and what it
    prints.
    """
    process = start(["-c", PROGRAM, ",".join(of), *arguments], folder, **variables)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return set(err.splitlines()[-1].split()[1:]), out


def test_help_imports_nothing_that_takes_long(tmp_path: Path) -> None:
    every = [path for path in commands() if path != ("train",)]  # that one is Hydra's
    assert {("table",), ("sweep", "run"), ("bench",), ("doctor",)} <= set(every)
    code = (
        "import json, sys\nfrom dks.cli.main import main\n"
        "for path in json.loads(sys.argv[1]):\n"
        "    try: main([*path, '--help'])\n"
        "    except SystemExit as left: assert left.code == 0, path\n"
        "print('imported:', *(name for name in sys.argv[2].split(',') if name in sys.modules))"
    )
    names = ",".join((*HEAVY, "hydra", "omegaconf", "numpy", "rich", "yaml"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, json.dumps(every), names]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("train", "--help"), ("train", "--cfg", "job"), ("train", "-sc", "install=bash")]
)
def test_what_hydra_shows_needs_nothing_that_takes_long(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    found, out = imported(tmp_path, *arguments)
    assert found == set()
    assert out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("backbone=res", {"backbone=resnet8", "backbone=resnet152"}),
        ("hydra/launcher=", {"hydra/launcher=local", "hydra/launcher=slurm"}),
        ("recipe.ep", {"recipe.epochs="}),
    ],
)
def test_completion_needs_nothing_that_takes_long(
    tmp_path: Path, line: str, expected: set[str]
) -> None:
    found, out = imported(
        tmp_path, "train", "-sc", "query=bash", COMP_LINE=f"python train.py {line}"
    )
    assert found == set()
    assert expected <= set(out.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("recipe.lr=-1",),
        ("backbone=nope",),
        ("-m", "seed=1,2", "recipe.batch_size=0"),
        ("data=parquet", "data.root=nowhere"),
        ("data=imagefolder", "data.root=nowhere"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_that_takes_long(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert imported(tmp_path, "train", *arguments, status=2) == (set(), "")


@pytest.mark.slow
def test_a_run_imports_neither_mlflow_nor_what_its_data_and_network_do_not_need(
    tmp_path: Path,
) -> None:
    """The process that trains.

    One of its own sends to MLflow, in tests/tracking/test_sender.py.
    """
    digits = [
        *(each for each in TINY if not each.startswith("data")),
        "data=digits",
        "recipe.epochs=1",
        "tracking=off",
    ]
    found, _ = imported(tmp_path, "train", *digits)
    assert found == {"torch"}


@pytest.mark.slow
def test_a_small_sweep_imports_neither_mlflow_nor_scipys_statistics(tmp_path: Path) -> None:
    cells = [
        "-m",
        *TINY,
        "recipe.epochs=1",
        "method=baseline,dks",
        "seed=1,2",
        "hydra.launcher.slots=1",
        "tracking=off",
    ]
    found, out = imported(
        tmp_path,
        "train",
        *cells,
        of=("mlflow", "torchvision", "sklearn", "scipy.stats", "matplotlib"),
    )
    assert found == set()
    assert "gain" in out, "with tests of its differences"


# --- the benchmarks


CELLS = ("cells", ["--cells", "2"])


@pytest.mark.slow
@pytest.mark.skipif(sampled(False, True), reason="a minute each; with --full")
@pytest.mark.parametrize(("name", "options"), [("startup", []), CELLS])
def test_a_benchmark_tells_what_it_measured(name: str, options: list[str], tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / f"{name}.py")
    process = start(
        [script, "--short", "--repeats", "1", "--device", "cpu", "--json", *options],
        tmp_path,
        OMP_NUM_THREADS="1",
    )
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["benchmark"] == name
    for result in found["results"]:
        assert len(result["ways"]) > 1
        for way in result["ways"].values():
            assert len(way["values"]) == 1 and way["values"][0] > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
