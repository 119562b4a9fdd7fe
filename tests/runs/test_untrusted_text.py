"""Names that other people gave, such as those of sweeps, classes and extensions, in everything that
shows them.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from dks.cli import main as cli
from dks.config.errors import RequestError, visible
from dks.results import render
from dks.results.model import Table, build
from dks.runs import damage
from dks.runs.record import Status
from dks.runs.terminal import Display
from dks.sweeps import manifest
from tests.conftest import finished_run
from tests.results.test_tables import frame, seeds
from tests.runs.test_ledger import cells
from tests.runs.test_ledger import write as write_sweep
from tests.runs.test_records import record

HOSTILE = {
    "colours": "\x1b[31mred\x1b[0m",
    "a title of the window": "\x1b]0;owned\x07",
    "a cleared screen": "\x1b[2J\x1b[H\x9b2J",
    "an overwritten line": "bad\rgood",
    "turned around": "\u202etxt.exe",
    "hidden": "a\u200bb",
    "rich's markup": "[bold red]x[/] [link=http://evil]y[/link] [/bold]",
    "a script": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "an attribute": "\"' onmouseover='alert(3)",
    "LaTeX": "\\input{/etc/passwd}\\write18{touch made}%$#&_{}~^",
    "the end of a caption": "}\n\n\\end{table}\\input{x}",
    "a formula": "=HYPERLINK(\"http://evil\",\"x\")",
    "a command of a spreadsheet": "@SUM(1+9)*cmd|' /C calc'!A0",
    "plus and minus": "+1+cmd|' /C calc'!A0",
    "a formula behind a tab": "\t=1+1",
    "a link": "[click](http://evil) ![pixel](http://evil/x.png) &lt;b&gt;",
    "a heading": "# owned",
    "a column more": "a | b | c",
    "lines": "a\n| b | c |\n\n- d",
    "a shell": "$(touch made); `touch made` | touch made",
    "a path": "../../../etc/passwd",
}  # fmt: skip
NAMES = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def hostile(text: str) -> Table:
    """A table in which it stands wherever a name can.

    Title, axes, rows, columns, and what is said beneath.
    """
    entries = frame(
        *seeds([1.0, 2.0], **{text: text, "column": text}),
        *seeds([3.0, None], **{text: "x", "column": text}),
    )
    for entry in entries:
        entry["computed"] = text
    return build(entries, "t", text, [text, "column", "seed"], [text], ["column"])


# --- a terminal


def harmless(shown: str, colours: bool = False) -> bool:
    """Does it do nothing but show text, in colours where those are ours?"""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown) if colours else shown
    return all(char.isprintable() or char == "\n" for char in plain)


@NAMES
def test_a_table_does_nothing_to_a_terminal(text: str) -> None:
    out = io.StringIO()
    render.terminal(hostile(text), Console(file=out, width=400))
    assert harmless(out.getvalue())
    assert "1.50" in out.getvalue()
    if text.isprintable():
        assert text in out.getvalue(), "shown as it is"


@NAMES
def test_progress_does_nothing_to_a_terminal(text: str) -> None:
    out = io.StringIO()
    with Display(
        2, Console(file=out, width=400, force_terminal=True, color_system=None)
    ) as display:
        failed = record(Status.failed)
        failed.label, failed.error = text, {"type": "ValueError", "message": text}
        view = display.run(failed)
        view.started(2, 10, 1)
        view.finished(failed)
    said = re.sub(r"\x1b\[(\?25[hl]|[12]K|1A)|\r", "", out.getvalue())  # what bars are drawn with
    assert harmless(said), repr(said)
    assert "failed" in said


@NAMES
def test_status_and_warnings_do_nothing_to_a_terminal(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = cells(tmp_path, 1)
    write_sweep(tmp_path, "mine", runs)
    path = tmp_path / "results" / "mine" / "sweep.json"
    values = json.loads(path.read_text())
    values.update(title=text, undecided=[text])
    values["cells"][0]["labels"] = {text: text}
    path.write_text(json.dumps(values))
    with damage.shown():
        logging.getLogger("dks.runs.damage").warning("%s", text)
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "status", "mine", "--results-dir", str(tmp_path / "results")])
    said = capsys.readouterr()
    assert left.value.code == 0
    assert harmless(said.out) and harmless(said.err), said
    assert said.err.startswith("warning: ")


# --- files


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, tuple[str, ...]]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, tuple(name for name, _ in attrs)))


@NAMES
def test_html_has_the_elements_of_any_other_table(text: str) -> None:
    assert Tags(render.html(hostile(text))).found == Tags(render.html(hostile("plain"))).found


@NAMES
def test_markdown_has_the_structure_of_any_other_table(text: str) -> None:
    """Parsed by a program that knows GitHub's tables."""
    from markdown_it import MarkdownIt

    def structure(table: Table) -> list[str]:
        tokens = (
            MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(render.markdown(table))
        )
        return [each.type for token in tokens for each in (token, *(token.children or []))]

    found = structure(hostile(text))
    assert {each for each in found if each not in ("text", "text_special")} == {
        each for each in structure(hostile("plain")) if each not in ("text", "text_special")
    }
    assert found.count("td_open") == structure(hostile("plain")).count("td_open")


def unescaped(latex: str) -> Iterator[str]:
    """The commands in it, such as `\\input`, and what is special without one."""
    yield from re.findall(r"\\(?:[A-Za-z]+|.)|[%$#&_~^]", latex, re.DOTALL)


OURS = {rf"\{name}" for name in (
    "addlinespace", "begin", "bottomrule", "caption", "centering", "cmidrule", "end", "footnotesize", "midrule", "multicolumn",  # noqa: E501
    "par", "setlength", "small", "smallskip", "tabcolsep", "textbf", "toprule",
    "textasciicircum", "textasciitilde", "textbackslash", "textbar", "textgreater", "textless",
)} | {r"\\", r"\%", r"\$", r"\#", r"\&", r"\_", r"\{", r"\}", "&"}  # fmt: skip


@NAMES
def test_latex_has_no_commands_but_ours(text: str) -> None:
    written = render.latex(hostile(text))
    assert set(unescaped(written)) <= OURS
    assert written.count(r"\end{table}") == render.latex(hostile("plain")).count(r"\end{table}")
    assert "\n\n" not in written.replace("\\end{table}\n\n", "")
    plain = re.sub(r"\\[{}]", "", written)
    assert plain.count("{") == plain.count("}")


@NAMES
def test_a_spreadsheet_takes_no_name_for_a_formula(text: str) -> None:
    rows = list(csv.reader(io.StringIO(render.comma_separated(hostile(text)), newline="")))
    assert {len(row) for row in rows} == {len(rows[0])}
    fields = [field for row in rows for field in row]
    assert [
        each for each in fields if each[:1] in tuple("=+-@\t\r\n") and not _is_number(each)
    ] == []
    assert visible(text) in [each.removeprefix("'") for each in fields]
    assert "1.5" in fields, "numbers stay numbers"


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def test_negative_numbers_stay_numbers_in_a_spreadsheet() -> None:
    runs = frame(*seeds([3.0, 3.5], method="baseline"), *seeds([4.25, 4.75], method="dks"))
    text = render.comma_separated(build(runs, "t", "t", ["method", "seed"], ["method"], []))
    assert "'" not in text
    assert [row["gain_over_baseline"][:5] for row in csv.DictReader(io.StringIO(text))] == [
        "",
        "-1.25",
    ]


# --- names of folders and files, and command lines


@pytest.mark.rest_slow(4)
@NAMES
def test_a_sweep_is_named_after_nothing_that_leads_elsewhere(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "data=synthetic", f"sweep='{quoted}'"])
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and harmless(said.err)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RequestError):
        manifest.read(str(tmp_path), text)


@NAMES
def test_a_job_of_slurm_runs_nothing_that_a_folder_is_called(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell lines that lead every job are run by a shell."""
    from dks.sweeps.launchers import slurm

    folder = tmp_path / text.replace("/", "_").replace("\n", "_")
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "python_path", lambda: str(folder))
    monkeypatch.delenv("DKS_EXTENSIONS", raising=False)
    script = "\n".join([*slurm._importable(), 'printf %s "$PYTHONPATH"'])
    ended = subprocess.run(["bash", "-c", script], capture_output=True, env={}, check=True)
    assert (ended.stdout.decode(), ended.stderr) == (str(folder), b"")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    name = slurm.array_name("20260101-000000-abcdef", 3)
    assert re.fullmatch(r"[\w-]+", name), "the names of jobs have nothing of a user in them"


# --- MLflow


@pytest.mark.slow
def test_mlflow_gets_names_as_text(tmp_path: Path) -> None:
    """A run whose label has everything in it arrives in a store once, is found again, and is read
    back as it was.
    """
    from dks.tracking.mlflow_source import MlflowSource

    label = " ".join(HOSTILE.values()).replace("\x00", "")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = finished_run(tmp_path)
    told = run.read_record()
    assert told is not None
    told.label, told.sweep = label, None
    run.write_record(told)
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            cli.main(
                [
                    "sync",
                    "--store",
                    store,
                    "--runs-dir",
                    str(tmp_path / "runs"),
                    "--results-dir",
                    str(tmp_path / "results"),
                ]
            )
        assert left.value.code == 0
    assert list(MlflowSource(store).runs()["cell_id"]) == [run.cell_id]
    import mlflow

    (found,) = mlflow.MlflowClient(store).search_runs(
        [mlflow.MlflowClient(store).get_experiment_by_name("dks").experiment_id]
    )
    assert found.info.run_name == label[:250] or label.startswith(found.info.run_name[:100])
