"""The habits of the command line.

Help with examples, quiet and verbose, `--json`, colours and bars.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dks.cli import main as cli
from dks.tools.export import SUFFIXES, Format
from tests.conftest import ROOT, TINY, start
from tests.support.command_line import commands, example_lines, examples, parsed

BASIC = ("hydra/launcher=basic",)  # runs cells inside this process
# without ("train",), whose help is Hydra's
COMMANDS = {path: each for path, each in commands().items() if path != ("train",)}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_has_examples_that_would_be_taken(path: tuple[str, ...], in_folder: Any) -> None:
    """What their KEY=VALUEs mean is composed in tests/system/test_docs.py."""
    lines = examples(COMMANDS[path])
    assert lines and all(line.split()[1 : 1 + len(path)] == list(path) for line in lines)
    for line in lines:
        given = parsed(shlex.split(line)[1:]).params
        if path == ("export",) and given["output"]:
            assert given["output"].endswith(SUFFIXES[Format(given["form"])])


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_a_help_is_as_wide_as_the_terminal_and_folds_no_example(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    widest = 0
    for path, command in COMMANDS.items():
        with pytest.raises(SystemExit) as left:
            cli.main([*path, "--help"])
        assert left.value.code == 0
        lines = {line.strip(): line for line in capsys.readouterr().out.splitlines()}
        folded = [line for text, line in lines.items() if text not in example_lines(command)]
        assert set(example_lines(command)) <= set(lines)
        widest = max(widest, *map(len, folded))
    assert columns - 15 < widest <= columns


# --- quiet and verbose
# ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of someone who ran the sweep `mine`: two runs, done."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(
            sys,
            "argv",
            ["train.py", "-q", "-m", "seed=1,2", "sweep=mine", "tracking=off", *BASIC, *TINY],
        )
        with pytest.raises(SystemExit) as left:
            cli.train()
        assert left.value.code == 0
        yield folder


def typed(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """`dks LINE` in that folder, where CELL is one of its runs: exit status, output, errors."""
    cell_id = next(folder.glob("runs/*")).name
    with pytest.raises(SystemExit) as left:
        cli.main(shlex.split(line.replace("CELL", cell_id)))
    return int(left.value.code or 0), *capsys.readouterr()


# A command that takes its time, and what it says with --verbose that it read or decided.
LOUD = {
    "table mine": "2 of 2 runs are in runs/; read in ",
    "figure mine --kind dots": "what was asked for: results/mine/sweep.json",
    "report mine": "2 of 2 runs are in runs/; read in ",
    "evaluate CELL": "32 test images of data=synthetic in batches of 500 on cpu",
    "export CELL --format safetensors --force": "the logits of the reloaded file differ from the "
    "network's by ",
    "sync": "took ",
    "doctor tracking=off data=synthetic": "took ",
    "sweep plan mine --probe 0": "took ",
    f"sweep run mine {' '.join(BASIC)}": "is left alone",
    "sweep retry mine": "is left alone",
    "sweep wait mine": "mine: 2 cells: 2 done",
}


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("line", LOUD)
def test_quiet_leaves_the_result_and_verbose_tells_what_was_read_and_how_long_it_took(
    line: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, normal, err = typed(line, workplace, capsys)
    assert (status == 0 or line.startswith("doctor")) and "error: " not in err
    again, out, err = typed(f"{line} --quiet", workplace, capsys)
    assert (again, err) == (status, "")
    assert out and (out == normal or line.startswith(("doctor", "sweep plan")))
    again, out, err = typed(f"{line} -v", workplace, capsys)
    assert again == status and out
    assert LOUD[line] in err
    assert re.fullmatch(r"took [0-9.:]+( s)?", err.splitlines()[-1])


# --- --json
# ----------------------------------------------------------------------

# What lists something -> what its JSON tells, to be found in its text as well.
LISTINGS: dict[str, Callable[[Any], list[str]]] = {
    "sweep list": lambda found: [each["name"] for each in found],
    "sweep plan mine --probe 0": lambda found: [
        f"all {len(found['cells'])} cells are done",
        found["cells"][1]["cell_id"],
    ],
    "sweep status mine": lambda found: [
        f"{found['name']}: {len(found['cells'])} cells: {found['counts']['done']} done"
    ],
    "sweep wait mine": lambda found: [f"{found[0]['cells'][0]['metrics']['top1']['mean']:.2f}"],
    "sweep cancel mine": lambda found: (
        ["nothing to cancel"] if found["withdrawn"] == found["jobs"] == [] else ["?"]
    ),
    "table mine": lambda found: [f"{found[0]['cells'][0]['metrics']['top1']['mean']:.2f}"],
    "figure mine --kind dots": lambda found: [f"written to {path}" for path in found["written"]],
    "runs migrate --dry-run": lambda found: [f"all runs in {found['runs_dir']} have ids of today"],
    "sync": lambda found: [f"{len(found['runs'])} runs left alone"],
    "doctor tracking=off data=synthetic": lambda found: [each["group"] for each in found],
    "evaluate CELL": lambda found: [
        f"{found['images']} images",
        f"{found['metrics']['test/top1_error']:.2f} / ",
    ],
    "extensions": lambda found: [each["name"] for each in found["extensions"]] or ["none: "],
    "bench --list": lambda found: [f"{each['name']} " for each in found],
}


@pytest.mark.rest_slow(3)
@pytest.mark.parametrize("line", LISTINGS)
def test_what_is_listed_is_there_for_programs(
    line: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text, _ = typed(line, workplace, capsys)
    again, out, _ = typed(f"{line} --json", workplace, capsys)
    assert again == status
    told = LISTINGS[line](json.loads(out))
    assert told and all(each in text for each in told), text


def test_every_command_lists_for_programs_or_is_known_to_list_nothing() -> None:
    listing = {
        path
        for path, command in COMMANDS.items()
        if any("--json" in each.opts for each in command.params)
    }
    # `bench` without --list: tests/system/test_benchmarks.py
    words = {word for path in COMMANDS for word in path}
    assert listing == {
        tuple(word for word in line.split()[:2] if word in words) for line in LISTINGS
    }
    alone = {(), ("runs",), ("sweep",), ("report",), ("export",), ("completion",)}
    alone |= {("sweep", "run"), ("sweep", "retry")}
    assert {*COMMANDS} - listing == alone


# --- colours and bars
# ----------------------------------------------------------------------

SEVERAL = """
import sys
from dks.cli.main import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit:
        print("ended", line, flush=True)
"""
# A run that fails and one that does not, the table of both, and what else has colours or bars.
SHOWING = (
    f"train -m recipe.lr=0.01,1e30 sweep=shown tracking=off {' '.join((*BASIC, *TINY))} "
    f"data.train_images=320",
    "sweep status shown",
    "sweep list",
    "table shown",
    "doctor tracking=off data=synthetic",
    "evaluate CELL",
    "no such command",
)
STYLE, ESCAPE = re.compile("\x1b\\[[0-9;:]*m"), "\x1b"


def showing(folder: Path) -> list[str]:
    """The command lines; CELL is one of the runs in the folder."""
    return [line.replace("CELL", next(folder.glob("runs/*")).name) for line in SHOWING]


def on_terminal(folder: Path, **variables: str) -> str:
    """What a terminal of 100 columns is sent by these commands on both its streams."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    environment = {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **variables}
    arguments = [sys.executable, "-c", SEVERAL, *showing(folder)]
    process = subprocess.Popen(arguments, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # the other side is closed
        while got := os.read(ours, 65536):
            seen += got
    os.close(ours)
    assert process.wait() == 0
    text = seen.decode()
    assert text.count("ended ") == len(SHOWING), text
    return text


@pytest.mark.slow
def test_a_terminal_gets_colours_and_bars_as_far_as_it_wants_them(
    workplace: Path, tmp_path: Path
) -> None:
    text = on_terminal(copied(workplace, tmp_path / "normal"))
    assert "\x1b[31mfailed" in text and "━" in text and "\x1b[1mshown: 2 cells" in text
    text = on_terminal(copied(workplace, tmp_path / "plain"), NO_COLOR="1")
    assert STYLE.search(text) is None
    assert "\x1b[2K" in text, "a bar is drawn anew in its line"
    assert "failed  NonFiniteLoss" in text and "error (%)" in text
    text = on_terminal(copied(workplace, tmp_path / "dumb"), TERM="dumb")
    assert ESCAPE not in text and re.search("\r(?!\n)", text) is None
    assert re.search(r"^\[2/2\] \S*lr=", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "40", "TERM": "xterm-256color"}], ids=str)
def test_a_pipe_gets_plain_whole_lines(
    variables: dict[str, str], workplace: Path, tmp_path: Path
) -> None:
    folder = copied(workplace, tmp_path)
    out, err = start(["-c", SEVERAL, *showing(folder)], folder, **variables).communicate(
        timeout=600
    )
    assert ESCAPE not in out + err and "\r" not in out + err
    assert (
        len([line for line in err.splitlines() if re.fullmatch(r"\[[12]/2\] \S*lr=\S+  .*", line)])
        == 2
    ), err
    assert any(line.startswith("┃") and line.endswith("┃") for line in out.splitlines()), (
        "no line of the table is folded"
    )


def copied(folder: Path, to: Path) -> Path:
    """What stands in the folder, in another one that may be changed."""
    return shutil.copytree(folder, to / "copy")
