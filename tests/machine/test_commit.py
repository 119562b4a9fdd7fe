"""The code by its commit.

What is kept of what was not committed, what a wheel knows, and which copy of the code runs.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from dks.cli.main import main
from dks.config.registry import VARIABLE
from dks.config.secrets import VARIABLES, without_password
from dks.machine import commit
from dks.sweeps.launchers.worker import run_cells
from dks.tracking.upload import lay_out
from dks.training.run import Outcome, run_cell
from tests.conftest import ROOT, queued, raise_at

NET = """
    import helper
    from dks import extend

    @extend.backbone("mynet", taps={})
    def mynet(num_classes):
        return helper.net
"""
# What a copy of the code tells of itself: its code, its commit and its diff.
TOLD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from dks.machine import code, commit
mynet = [("backbone", "mynet")]
files = code.extension_files(mynet)
print(json.dumps([code.current(mynet), commit.git_commit(), commit.code_diff(files)]))
"""


def git(folder: Path, *arguments: str) -> str:
    command = [
        "git",
        "-C",
        str(folder),
        "-c",
        "user.name=Me",
        "-c",
        "user.email=me@example.org",
        *arguments,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def forget() -> None:
    commit.git_commit.cache_clear()
    commit._changes.cache_clear()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in a repository of code with everything committed, in place of ours."""
    file = tmp_path / "code" / "dks" / "module.py"
    file.parent.mkdir(parents=True)
    for name in ("__init__.py", "module.py"):
        file.with_name(name).write_text("a = 1\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(tmp_path / "code", *arguments)
    monkeypatch.setattr(commit, "_PACKAGE", file.parent)
    forget()
    yield file
    forget()


def diff() -> str:
    """What a process that starts now keeps."""
    forget()
    return commit.code_diff({}) or ""


# --- changes


def test_what_was_not_committed_is_kept_beside_the_run(module: Path, tmp_path: Path) -> None:
    module.write_text("a = 2\n")
    folder = queued(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dks.runs.terminal.RunView.stepped", raise_at(1, RuntimeError("stopped")))
        run_cell(folder.path)
    assert "-a = 1\n+a = 2\n" in folder.diff_file.read_text()
    module.write_text("a = 1\n")
    forget()
    assert run_cell(folder.path) is Outcome.done
    assert not folder.diff_file.exists(), "it belongs to the newest attempt"
    record = folder.read_record()
    assert record is not None
    assert [str(attempt.git_commit).endswith("-dirty") for attempt in record.attempts] == [
        True,
        False,
    ]


def test_a_diff_that_is_too_long_is_cut_and_says_so(module: Path) -> None:
    module.write_text("ä = 1\n" * 400_000)
    *_, last = diff().splitlines()
    assert last.startswith("# cut here: the whole diff has 3,2") and last.endswith(" bytes")
    assert commit.DIFF_LIMIT < len(diff().encode()) < commit.DIFF_LIMIT + 100


def test_a_diff_of_bytes_that_are_no_text_is_still_told(module: Path) -> None:
    module.write_bytes(b"a = '\xff\xfe'\n")
    assert "+a = '" in diff()


def test_no_password_is_in_a_diff_or_in_what_is_sent_of_it(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = {name: secrets.token_urlsafe(16) + "/+" for name in VARIABLES}
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    in_uris = [secrets.token_hex(8) for _ in range(4)]
    lines = [
        f'uri = "postgresql://u:{in_uris[0]}@host/db"',
        f"# http://:{in_uris[1]}@host",
        f"mysql://h/d?password={in_uris[2]}",
    ]
    lines += [f'token = "{value}"' for value in hidden.values()]
    lines += [f"https://host/?token={quote(value, safe='')}" for value in hidden.values()]
    module.write_text("\n".join([*lines, "a = 2"]))
    module.with_name("new.py").write_text(
        f'"""http://me:{in_uris[3]}@host"""\ntoken = "{hidden["PGPASSWORD"]}"\n'
    )
    folder = queued(tmp_path)
    monkeypatch.setattr(
        "dks.runs.terminal.RunView.stepped",
        raise_at(1, RuntimeError(f"{hidden['PGPASSWORD']} is wrong")),
    )
    run_cells([folder.path])
    with folder.log_file.open("a") as log:  # as a library would that prints
        log.write(
            f"connected to http://me:{in_uris[0]}@host with {hidden['MLFLOW_TRACKING_TOKEN']}\n"
        )
    assert module.read_text().count("postgresql") == 1, "the code itself is left alone"
    kept = folder.diff_file.read_text()
    assert 'uri = "postgresql://u@host/db"' in kept and 'token = "..."' in kept and "+a = 2" in kept
    assert '+"""http://me@host"""\n+token = "..."\n' in kept, "in a new file as well"
    record = folder.read_record()
    assert (
        record is not None
        and record.error is not None
        and record.error["message"] == "... is wrong"
    )
    sent = tmp_path / "sent"
    sent.mkdir()
    lay_out(folder, sent)
    assert "connected to http://me@host with ..." in (sent / "run.log").read_text()
    assert (sent / "record.json").read_text() == folder.record_file.read_text()
    texts = [
        path.read_text()
        for path in (*folder.path.glob("[!r]*.*"), folder.record_file, *sent.iterdir())
    ]
    assert len(texts) > 8
    for secret in (
        *in_uris,
        *hidden.values(),
        *(quote(value, safe="") for value in hidden.values()),
    ):
        assert not any(secret in text for text in texts)


def test_a_diff_is_cut_after_its_passwords_are_out(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = secrets.token_hex(500)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", secret)
    module.write_text(f"{secret}\n" * 3000)
    assert secret[:40] not in diff() and diff().count("+...\n") == 3000
    started = time.monotonic()
    without_password('{"a":"http://h:80/"},' * 50_000)
    assert time.monotonic() - started < 10, (
        "one long line of many addresses, as minified files have"
    )


# --- new files


def test_new_files_of_the_code_are_kept_and_make_it_dirty(module: Path) -> None:
    assert commit.git_commit() == git(module.parent, "rev-parse", "HEAD").strip() and diff() == ""
    root = module.parent.parent
    (root / ".git" / "info" / "exclude").write_text("*.tmp\n")
    (root / "notes.py").write_text("a = 1\n")
    module.with_name("ignored.tmp").write_text("a = 1\n")
    assert diff() == "" and not str(commit.git_commit()).endswith("-dirty"), (
        "what is not of the code"
    )
    (root / "conf" / "backbone").mkdir(parents=True)
    (root / "conf" / "backbone" / "my net.yaml").write_text("depth: 1\nwidth: 2")
    module.with_name("picture.png").write_bytes(b"\x89PNG\0")
    assert diff() == (
        "diff --git a/conf/backbone/my net.yaml b/conf/backbone/my net.yaml\nnew file mode 100644\n"
        "--- /dev/null\n+++ b/conf/backbone/my net.yaml\n@@ -0,0 +1,2 @@\n+depth: 1\n+width: "
        "2\n\\ No newline at end of file\n"
        "# left out: 'dks/picture.png' of 5 bytes\n"
    )
    forget()
    assert str(commit.git_commit()).endswith("-dirty")
    module.with_name("large.py").write_text("a = 1\n" * 300_000)
    assert "# left out: 'dks/large.py' of 1,800,000 bytes\n" in diff()


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("inside", [True, False])
def test_a_run_can_be_rebuilt_from_its_commit_and_its_diff(inside: bool, tmp_path: Path) -> None:
    """With a changed module, new ones, an empty one, and an extension that lies in the repository
    or elsewhere.
    """
    project, again = tmp_path / "project", tmp_path / "again"
    shutil.copytree(ROOT / "dks", project / "dks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", project)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(project, *arguments)
    git(tmp_path, "clone", "-q", str(project), str(again))
    plain = told(again, tmp_path)
    assert not plain[1].endswith("-dirty") and plain[2] is None
    extensions = project / "extensions" if inside else tmp_path / "elsewhere"
    extensions.mkdir()
    (extensions / "mynet.py").write_text(textwrap.dedent(NET))
    (extensions / "helper.py").write_text("net = 'größer'\n")
    with (project / "dks" / "losses.py").open("a") as file:
        file.write("\nTEMPERATURE = 2\n\n")
    (project / "dks" / "models" / "new.py").write_text("# ends without a newline\nwidth = 3")
    (project / "dks" / "training" / "more").mkdir()
    (project / "dks" / "training" / "more" / "__init__.py").write_text("")
    changed, commit_of_it, kept = told(project, extensions / "mynet.py")
    assert commit_of_it == f"{plain[1]}-dirty" and kept is not None
    (tmp_path / "code.diff").write_text(kept)
    git(again, "apply", str(tmp_path / "code.diff"))
    rebuilt = again / ("extensions/mynet.py" if inside else "mynet.py")
    assert told(again, rebuilt)[0] == changed
    assert changed.partition("+")[0] != plain[0].partition("+")[0], "the code was another one"
    assert (again / "dks" / "training" / "more" / "__init__.py").exists()


def told(project: Path, extension: Path) -> tuple[str, str, str | None]:
    """Code, commit and diff of a copy of the project, with a file of extensions."""
    command = [sys.executable, "-P", "-c", TOLD, str(project)]
    environment = {VARIABLE: str(extension), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    out = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
    found: tuple[str, str, str | None] = json.loads(out)
    return found


def test_an_extension_that_is_installed_or_committed_is_not_kept(
    module: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages" / "theirs.py"
    installed.parent.mkdir()
    installed.write_text("a = 1\n")
    assert commit.code_diff({"theirs.py": installed, "module.py": module}) is None
    own = tmp_path / "own.py"
    own.write_text("a = 1\n")
    assert str(commit.code_diff({"own.py": own})).splitlines()[0] == "diff --git a/own.py b/own.py"


# --- other copies


def test_another_copy_in_the_current_folder_is_told_in_one_line(
    run_here: Callable[..., tuple[int, str, str]],
    in_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = in_folder / "dks"
    copy.mkdir()
    (copy / "__init__.py").touch()
    assert run_here("recipe.lr=-1")[2].count("\n") == 1, "a folder of that name is no copy"
    (in_folder / "train.py").touch()
    status, _, err = run_here("recipe.lr=-1")
    warning, error = err.splitlines()
    assert status == 2 and error.startswith("error: recipe.lr=-1")
    assert warning.startswith(
        f"warning: the code that runs is that of {ROOT}, not that of this folder, which is "
        f"another copy"
    )
    assert list(commit.other_copies(ROOT)) == []
    for command, told in ((["table", "nope"], [warning]), (["completion", "bash"], [])):
        with pytest.raises(SystemExit):
            main(command)
        assert [
            line for line in capsys.readouterr().err.splitlines() if not line.startswith("error")
        ] == told


def test_a_clone_whose_script_runs_while_another_copy_is_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    (installed / "dks").mkdir(parents=True)
    (installed / "dks" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(ROOT), str(installed), *sys.path[1:]])
    (line,) = commit.other_copies(tmp_path)
    assert line.startswith(
        f"the code that runs is that of {ROOT}, while the command dks runs that of {installed}; "
    )
    monkeypatch.setattr(sys, "path", [str(ROOT), str(ROOT), str(installed)])
    assert list(commit.other_copies(tmp_path)) == [], "it is the one that is installed"
    monkeypatch.setattr(sys, "path", ["/usr/local/bin", str(installed)])
    assert list(commit.other_copies(tmp_path)) == [], "the command dks itself"


# --- a wheel


def test_the_commit_of_a_wheel_is_that_of_its_repository(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from hatch_build import _commit

    root = module.parent.parent
    assert _commit(root) is None, "somebody else's repository"
    (root / "pyproject.toml").touch()
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    head = git(root, "rev-parse", "HEAD").strip()
    assert _commit(root) == head
    module.with_name("new.py").touch()
    assert _commit(root) == f"{head}-dirty"
    shutil.rmtree(root / ".git")
    assert _commit(root) is None
    (module.parent / "share").mkdir()
    (module.parent / "share" / "commit.txt").write_text(f"{head}\n")
    forget()
    assert (commit.git_commit(), diff()) == (head, ""), "what is installed asks no repository"
