"""What the Tab key offers, asked as a shell asks, and in real shells."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dks.cli.completion import FILES, LAUNCHERS, LOCAL_OPTIONS, candidates
from dks.cli.main import dks
from dks.cli.train import FLAGS
from tests.conftest import ROOT
from tests.support.command_line import commands
from tests.system.test_startup import HEAVY, imported


def offered(line: str) -> list[str]:
    """What can stand in place of the last word of `dks LINE`."""
    return list(candidates(dks, line.split(" ")))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sw", ["sweep"]),
        ("sweep re", ["retry"]),
        ("sweep run meth", ["methods"]),
        ("sweep run methods -q --launcher=s", ["--launcher=slurm"]),
        ("table table3 --format ", ["terminal", "md", "latex", "html", "csv"]),
        ("table --format md table3 recipe.ep", ["recipe.epochs="]),
        ("table table3 data=digits seed=1 recipe.ep", ["recipe.epochs="]),
        ("train rec", ["recipe=", "recipe."]),
        ("train ++recipe.ep", ["++recipe.epochs="]),
        ("train recipe.schedule=", ["recipe.schedule=step", "recipe.schedule=cosine"]),
        ("train data.flip=", ["data.flip=true", "data.flip=false"]),
        ("train -m strategy=topdown,b", ["strategy=topdown,bidir", "strategy=topdown,bottomup"]),
        ("train -m strategy=topdown,bidir,b", ["strategy=topdown,bidir,bottomup"]),
        ("train --cfg j", ["job"]),
        ("train hydra/l", ["hydra/launcher="]),
        (
            "sweep run methods hydra.launcher.sl",
            ["hydra.launcher.slots=", "hydra.launcher.slots_per_gpu="],
        ),
        (
            "sweep run methods hydra.launcher.par",
            ["hydra.launcher.partition=", "hydra.launcher.parallel="],
        ),
        ("doctor data=cifar10", ["data=cifar10", "data=cifar100"]),
        ("evaluate --weights ", [FILES]),
        ("evaluate --weights w.pt data=cifar10", ["data=cifar10", "data=cifar100"]),
        ("evaluate --weights w.pt data=cifar10 recipe=wrn_", ["recipe=wrn_code"]),
        ("evaluate --backbone=resnet10", []),
        ("train data.root=", [FILES]),
        ("bench st --device x sta", ["startup"]),
        ("completion z", ["zsh"]),
        ("completion zsh --whatever", []),
    ],
)
def test_the_last_word_is_completed_from_those_before_it(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


def test_a_group_has_the_choices_of_extensions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "more.py"
    file.write_text(
        "from dks.extend import aux_design\n\naux_design('linear', lambda place: None)\n"
    )
    monkeypatch.setenv("DKS_EXTENSIONS", str(file))
    assert offered("train aux=l") == ["aux=linear"]
    file.write_text("this is no Python")
    monkeypatch.setenv("DKS_EXTENSIONS", f"{file}:")
    assert "aux=ours" in offered("train aux=")


def test_sweeps_and_runs_are_those_of_the_folders_that_are_named(in_folder: Path) -> None:
    for name in (
        "results/mine/sweep.json",
        "elsewhere/other/sweep.json",
        "runs/0123456789ab/record.json",
    ):
        (in_folder / name).parent.mkdir(parents=True)
        (in_folder / name).touch()
    assert offered("table mi") == offered("sweep status mi") == ["mine"]
    assert offered("sweep status --results-dir elsewhere o") == ["other"]
    assert offered("table --results-dir=elsewhere o") == ["other"]
    assert offered("evaluate ") == offered("export --format onnx ") == ["0123456789ab"]
    assert "--json" in offered("evaluate --runs-dir nowhere "), "there is nothing but options"
    assert offered("sync ") == ["mine", "0123456789ab"]


def test_every_argument_of_every_command_is_completed(in_folder: Path) -> None:
    (in_folder / "runs" / "0123456789ab").mkdir(parents=True)
    (in_folder / "runs" / "0123456789ab" / "record.json").touch()
    for path in commands():
        first = offered(" ".join([*path, ""]))
        assert first, path
        assert (
            "--help" in offered(" ".join([*path, "--h"]))
            or path == ("train",)
            or path == ("completion",)
        )


def test_every_key_of_the_configuration_is_offered() -> None:
    from omegaconf import OmegaConf

    from dks.config.schema import Config

    def below(node: object, prefix: str) -> Iterator[str]:
        assert isinstance(node, dict)
        for key, value in node.items():
            if value and isinstance(value, dict):
                yield from below(value, f"{prefix}{key}.")
            elif value != {}:
                yield f"{prefix}{key}"

    for key in below(OmegaConf.to_container(OmegaConf.structured(Config)), ""):
        assert f"{key}=" in offered(f"train {key}"), key


def test_what_is_said_of_hydra_is_true() -> None:
    from hydra._internal.utils import get_args_parser

    hydras = {
        option: action.nargs
        for action in get_args_parser()._actions
        for option in action.option_strings
    }
    assert set(FLAGS) <= set(hydras)
    from hydra.core.config_store import ConfigStore

    from hydra_plugins.dks_launchers import local, slurm

    assert {local.__name__.rpartition(".")[2], slurm.__name__.rpartition(".")[2]} == set(LAUNCHERS)
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    assert {f"{name}.yaml" for name in LAUNCHERS} <= set(stored)
    assert all(hasattr(local.LocalOptions(), name) for name in LOCAL_OPTIONS)


def test_completion_reads_nothing_heavy_and_prints_no_error(tmp_path: Path) -> None:
    heavy = (*HEAVY, "hydra", "numpy", "rich", "yaml")
    for words in (["sweep", "run", ""], ["table", "table3", "--f"]):
        found, out = imported(tmp_path, "completion", "zsh", *words, of=(*heavy, "omegaconf"))
        assert found == set() and out
    found, out = imported(
        tmp_path, "completion", "bash", "aux", "dks train -m recipe.epochs=1 aux", of=HEAVY
    )
    assert found == set()
    assert out.splitlines() == [
        "aux=",
        "aux_design=",
        "aux_positions=",
        "aux_design.",
        "aux_positions.",
    ]


# --- real shells

ECHO = """#!/bin/sh
[ "$1" = completion ] && exec "{python}" -c 'from dks.cli.main import main; main()' "$@"
printf '<%s>' "$@"; echo
"""


@pytest.fixture
def shell_folder(tmp_path: Path) -> Path:
    """With a `dks` that completes as the real one, and otherwise prints its arguments."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "dks"
    program.write_text(ECHO.format(python=sys.executable))
    program.chmod(0o755)
    (tmp_path / "images").mkdir()
    return tmp_path


def variables(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": path,
        "HOME": str(folder),
        "TERM": "dumb",
        "OMP_NUM_THREADS": "1",
    }


def needs(shell: str) -> None:
    """Skips a test where that shell is missing, but not in CI."""
    if shutil.which(shell) is None and os.environ.get("CI") != "true":
        pytest.skip(f"{shell} is not installed")


class Terminal:
    """A shell that somebody types into."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.side, theirs = pty.openpty()
        # no line is to be folded
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=variables(folder),
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, keys: str, expected: str) -> None:
        """Type, and wait for what is to appear."""
        self.seen = ""
        os.write(self.side, keys.encode())
        until = time.monotonic() + 20
        while expected not in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.seen):
            readable, _, _ = select.select([self.side], [], [], max(0, until - time.monotonic()))
            assert readable, self.seen
            self.seen += os.read(self.side, 65536).decode()

    def leave(self) -> None:
        os.write(self.side, b"exit\r")
        self.process.wait(20)
        os.close(self.side)


@pytest.mark.slow
@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    "command", [["bash", "--norc", "--noprofile", "-i"], ["zsh", "-f", "-i"]], ids=["bash", "zsh"]
)
def test_bash_and_zsh_complete_what_is_typed(command: list[str], shell_folder: Path) -> None:
    needs(command[0])
    terminal = Terminal(command, shell_folder)
    terminal.type(f'eval "$(dks completion {command[0]})"; echo rea""dy\r', "\nready")
    terminal.type("dks sweep run met\t", "methods")
    terminal.type("recipe.epo\t", "recipe.epochs=")
    terminal.type("5 strategy=topdown,bott\t", "bottomup")
    terminal.type("data.root=ima\t", "images/")
    terminal.type(
        "\r", "\n<sweep><run><methods><recipe.epochs=5><strategy=topdown,bottomup><data.root=images"
    )
    terminal.type("dks sweep no\tsuch\r", "<nosuch>")
    assert "rror" not in terminal.seen
    terminal.leave()


def test_fish_completes_what_is_typed(shell_folder: Path) -> None:
    needs("fish")
    lines = (
        "dks sweep run met",
        "dks train strategy=topdown,bott",
        "dks train data.root=ima",
        "dks table table3 --for",
        "dks no",
    )
    asked = "; ".join(f"complete -C '{line}'" for line in lines)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"dks completion fish | source; {asked}"],
        cwd=shell_folder,
        env=variables(shell_folder),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert found == ["methods", "strategy=topdown,bottomup", "data.root=images/", "--format"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_without_the_command_says_nothing(shell: str, shell_folder: Path) -> None:
    """After an environment was left, for example."""
    needs(shell)
    script = subprocess.run(
        [str(shell_folder / "bin" / "dks"), "completion", shell],
        env=variables(shell_folder),
        capture_output=True,
        text=True,
    ).stdout
    (shell_folder / "bin" / "dks").unlink()
    flags = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
    (shell_folder / "script").write_text(script)
    terminal = Terminal([shell, *flags], shell_folder)
    terminal.type('source ./script; echo rea""dy\r', "\nready")
    terminal.type(": ; dks swe\t", "dks swe")
    terminal.type("\x15echo a''b\r", "\nab")
    assert "not found" not in terminal.seen
    terminal.leave()
