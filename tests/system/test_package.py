"""The wheel, the README and the rules that hold for the whole tree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dks.machine.code import current
from dks.machine.commit import git_commit
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = folder.glob("dks-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_declarations_and_all_code(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, kind in (
        ("conf", "yaml"),
        ("sweeps", "yaml"),
        ("analysis/paper", "csv"),
        ("benchmarks", "py"),
    ):
        files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob(f"*.{kind}")]
        assert files
        assert {f"dks/share/{path.as_posix()}" for path in files} <= names
    assert {"dks/share/constraints.txt", "dks/machine/equal_code.txt"} <= names
    code = {
        path.relative_to(ROOT).as_posix()
        for package in ("dks", "hydra_plugins")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js")
    }
    assert code <= names
    assert {"dks/results/report/page.html", "dks/results/report/page.css"} <= code
    assert not [
        name
        for name in names
        if name.startswith(("tests", "benchmarks", "analysis")) or "__pycache__" in name
    ]


@pytest.mark.slow
def test_the_installed_wheel_works_in_any_folder(wheel: Path, tmp_path: Path) -> None:
    """The `dks` command from the unpacked wheel alone, with nothing of the checkout on the path."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from dks.cli.main import main; main()"

    def run(arguments: str) -> str:
        command = [sys.executable, "-P", "-c", code, *arguments.split()]
        ended = subprocess.run(
            command, cwd=elsewhere, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    arguments = (
        "train data=synthetic data.image_size=8 data.train_images=64 data.test_images=32 "
        "recipe.epochs=1 tracking=off"
    )
    assert "c3" in run(arguments)
    assert [path.name for path in elsewhere.iterdir()] == ["runs"]
    (record,) = elsewhere.glob("runs/*/record.json")
    (attempt,) = json.loads(record.read_text())["attempts"]
    assert attempt["code"] == current(), "a wheel is the same code as what it was built from"
    assert attempt["git_commit"] == git_commit(), "and knows its commit"
    assert "| baseline | none | missing | 31.06/11.13 |" in run("table table4 --format md"), (
        "the paper's numbers are in it"
    )
    assert "\nmatrix_product  The limit of this machine" in run("bench --list")
    assert "large matrix product  bf16" in run("bench matrix_product --device cpu")


def test_the_readme_begins_with_the_two_commands_of_a_newcomer() -> None:
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert (
        "python train.py -m aux=ours,shallow,narrow strategy=topdown,bottomup,bidir"
        in blocks[0].splitlines()
    )
    assert "pytest" in blocks[1].splitlines()
    assert all("pip install -c constraints.txt -e " in block for block in blocks[:2]), (
        "one program, whichever way it is typed"
    )


def test_every_dependency_has_an_exact_version_in_the_constraints() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
    ]
    wanted = {
        re.split(r"[\[<>=~!]", item)[0].lower().replace("_", "-")
        for group in groups
        for item in group
    } - {"dks"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert wanted <= pinned
    assert not [line for line in lines if "://" in line or "@" in line]


def test_modules_are_one_noun_each() -> None:
    modules = list((ROOT / "dks").rglob("*.py"))
    assert not [path for path in modules if path.stem in ("utils", "helpers", "misc", "common")]
    assert not [path.name for path in modules if len(path.read_text().splitlines()) > 450]
