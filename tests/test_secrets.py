"""Passwords and tokens stay where they were: in the environment, and in nothing that is written or shown."""

from __future__ import annotations

import os
import secrets
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, queued, raise_at, start, train
from leaks import assert_nowhere, watching_command_lines

from dks.sweeps.worker import run_cells


@pytest.mark.parametrize("uri", ["http://me:{}@host:5000", "postgresql://me:{}@host/db", "mysql://host/db?password={}"])
def test_a_password_in_a_uri_is_refused_and_kept_nowhere(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dks import cli

    secret = secrets.token_hex(16)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(SystemExit) as left:
            cli.main(["train", *TINY, f"tracking.uri='{uri.format(secret)}'"])
    finally:
        os.chdir(before)
    said = capsys.readouterr()
    assert left.value.code == 2
    assert "tracking.uri" in said.err and secret not in said.err + said.out
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_has_a_password_is_recorded_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = secrets.token_hex(16)
    run = queued(tmp_path)
    monkeypatch.setattr("dks.terminal.RunView.stepped", raise_at(1, RuntimeError(f"postgresql://me:{secret}@host/db says no")))
    run_cells([run.path])
    record = run.read_record()
    assert record is not None and record.error is not None
    assert record.error["message"] == "postgresql://me@host/db says no"
    log = next(path for path in run.path.iterdir() if path.name == "run.log").read_text()
    assert "Traceback" in log and "postgresql://me@host/db says no" in log
    said = capsys.readouterr()
    assert secret not in said.out + said.err
    assert_nowhere(secret, tmp_path)


@pytest.mark.slow
def test_what_the_environment_holds_is_in_no_file_and_no_command_line(tmp_path: Path) -> None:
    secret = secrets.token_hex(16)
    variables = dict.fromkeys(
        ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "MY_PASSWORD"), secret
    )
    sweep = (*TINY, "seed=1,2", "hydra.launcher.slots=2")
    with watching_command_lines(secret) as seen:
        status, out, err = train(tmp_path, "-m", *sweep, MLFLOW_TRACKING_USERNAME="me", **variables)
        assert status == 0, err
        assert secret not in out + err
        (results,) = (tmp_path / "results").iterdir()
        for command in (["report", results.name], ["table", results.name], ["sweep", "status", results.name], ["sync"]):
            process = start(["-m", "dks", *command], tmp_path, **variables)
            said = "".join(process.communicate(timeout=300))
            assert (process.returncode, secret in said) == (0, False), said
    assert seen == []
    assert (results / "report.html").exists() and (tmp_path / "mlflow.db").exists()
    assert_nowhere(secret, tmp_path)


# --- that the tests above can fail


def test_a_secret_on_a_command_line_is_seen() -> None:
    secret = secrets.token_hex(16)
    with watching_command_lines(secret) as seen:
        subprocess.run(["sh", "-c", "sleep 0.5; :", secret], check=True)
    assert seen


@pytest.mark.parametrize(
    "put",
    [
        lambda folder, secret: (folder / "some.log").write_text(f"as {secret} stands here"),
        lambda folder, secret: (folder / "some.log").write_bytes(b64encode(f"ann:{secret}".encode())),
        lambda folder, secret: (folder / f"x{secret}").mkdir(),
    ],
)
def test_a_secret_in_a_file_is_found(tmp_path: Path, put: Callable[[Path, str], object]) -> None:
    secret = secrets.token_hex(16)
    (tmp_path / "some.log").write_text("nothing")
    assert_nowhere(secret, tmp_path)
    put(tmp_path, secret)
    with pytest.raises(AssertionError):
        assert_nowhere(secret, tmp_path)
