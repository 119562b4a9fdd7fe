"""Passwords and tokens stay where they were.

In the environment, and in nothing that is written or shown.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dks.config.errors import RequestError, one_line, short
from dks.config.secrets import has_password, without_password
from dks.runs.journal import now
from dks.runs.record import Attempt
from dks.sweeps.launchers.worker import run_cells
from dks.tracking import store
from dks.tracking.destination import Destination
from dks.tracking.upload import _Upload
from tests.conftest import TINY, queued, raise_at, start, train
from tests.support.leaks import assert_nowhere, watching_command_lines

# As it stands in a text, and what is left of it.
FORMS = {
    "https://s3cr3t@host/x": "https://host/x",
    "git+https://s3cr3t:x-oauth-basic@github.com/a.git": "git+https://github.com/a.git",
    "http://s3cr3t:@host": "http://host",
    "https://host/x?a=1&token=s3cr3t&b=2": "https://host/x?a=1&token=...&b=2",
    "https://host/x?access_token=s3cr3t": "https://host/x?access_token=...",
    "https://host/#access_token=s3cr3t": "https://host/#access_token=...",
    "https://blob/x?sv=2024&sig=s3cr3t%3D&se=9": "https://blob/x?sv=2024&sig=...&se=9",
    "https://s3/x?X-Amz-Credential=s3cr3t/eu&X-Amz-Signature=s3cr3t": "https://s3/x?X-Amz-Credential=...&X-Amz-Signature=...",
    "https://s3/x?X-Amz-Security-Token=s3cr3t": "https://s3/x?X-Amz-Security-Token=...",
    "https://host/x?api_key=s3cr3t&client_secret=s3cr3t": "https://host/x?api_key=...&client_secret=...",
    "https://host/x?key=s3cr3t": "https://host/x?key=...",
    "jdbc:postgresql://h/d?user=me&password=s3cr3t": "jdbc:postgresql://h/d?user=me&password=...",
    "Authorization: Bearer s3cr3t": "Authorization: Bearer ...",
    "{'authorization': 'Basic s3cr3t', 'x': 1}": "{'authorization': 'Basic ...', 'x': 1}",
    "'Proxy-Authorization': b'Token s3cr3t'": "'Proxy-Authorization': b'Token ...'",
    "Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature=s3cr3t": "Authorization: "
    "AWS4-HMAC-SHA256 ...",
    "Authorization: s3cr3t": "Authorization: ...",
    'Authorization: Digest username="s3cr3t", response="s3cr3t"': "Authorization: Digest ...",
    "{'Authorization': ['Bearer s3cr3t']}": "{'Authorization': ['Bearer ...']}",
    r"{\"Authorization\": \"Bearer s3cr3t\"}": r"{\"Authorization\": \"Bearer ...\"}",
    "host=db user=me password=s3cr3t dbname=x": "host=db user=me password=... dbname=x",
    "password='s3cr3t s3cr3t' host=db": "password=... host=db",
    "Server=db;Uid=me;Pwd=s3cr3t;x=1": "Server=db;Uid=me;Pwd=...;x=1",
    "Password=s3cr3t;User Id=me": "Password=...;User Id=me",
    'host=db password="s3cr3t s3cr3t"': "host=db password=...",
    r"password='it\'s s3cr3t' host=db": "password=... host=db",
    "host=db sslpassword=s3cr3t": "host=db sslpassword=...",
}
# What holds no secret and must stay as it is: code above all, for a diff is applied again.
PLAIN = (
    "sqlite:///mlflow.db, postgresql://me@host/db?sslkey=client.pem, http://host:5000/a?b=c, "
    "git@host:a/b.git, ssh://git@host",
    "def connect(host, password=None): return open(host=host, password=password)",
    'headers["Authorization"] = made_of(token)',
    "https://example.org/docs?page=2&design=ours#tokens",
)


@pytest.mark.parametrize("text", FORMS)
def test_a_secret_is_left_out_of_a_text_in_whatever_form_it_stands(text: str) -> None:
    shown = FORMS[text]
    assert without_password(text) == shown
    assert without_password(f"cannot reach {text}") == f"cannot reach {shown}"
    assert "s3cr3t" not in without_password(f'+x = f(1, "{text}")')
    assert without_password(shown) == shown
    assert has_password(text) and not has_password(shown)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert without_password(text) == text


@pytest.mark.parametrize(
    "name",
    ["MY_PASSWORD", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "GH_TOKEN", "MYSQL_PWD", "DB_PASS",  # noqa: E501
     "apiKey2", "SERVICE_CREDENTIALS", "hub_token", "SSH_PASSPHRASE", "SECRET"],
)  # fmt: skip
def test_the_value_of_a_variable_whose_name_says_so_is_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "zq/9 Kx#4")
    forms = ("zq/9 Kx#4", "zq%2F9%20Kx%234", "zq/9%20Kx%234", "zq%2F9+Kx%234")
    assert without_password(", ".join(forms)) == "..., ..., ..., ..."
    monkeypatch.setenv(name, 'a "quoted" word')
    assert without_password(r'{"x": "a \"quoted\" word"}') == '{"x": "..."}'


def test_a_variable_may_hold_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", os.fsdecode(b"\xff and more"))
    assert (
        without_password(f"{os.environ['SOME_TOKEN']}, %FF%20and%20more, and nothing else")
        == "..., ..., and nothing else"
    )


def test_a_key_of_several_lines_is_left_out_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_KEY", "-----BEGIN KEY-----\nAAAAB3Nz\nzaC1yc2E=\n-----END KEY-----")
    assert without_password("it says AAAAB3Nz, and zaC1yc2E=") == "it says ..., and ..."


def test_variables_that_only_sound_so_and_short_values_leave_words_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {
        "TOKENIZERS_PARALLELISM": "parallel",
        "KEYBOARD": "keyboard-layout",
        "XKB_KEYMAP": "resnet32",
        "SSH_AUTH_SOCK": "/run/agent.1234",
        "PWD": str(tmp_path),
        "TLS_KEY_FILE": "server-key.pem",
        "USE_TOKEN": "true",
        "MAX_TOKENS": "1000",
        "SORT_KEY": "epoch",
        "GPG_KEY": str(tmp_path / "key"),  # a folder that is there
        "MLFLOW_TRACKING_TOKEN": "mlflow",
    }
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    text = ", ".join(words.values())
    assert without_password(text) == text
    assert without_password("mlflow says true", shortest=1) == "... says true", (
        "what opens a store is out of a store's words"
    )


def test_what_is_cut_is_cut_after_its_secrets_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a password would not be known for one."""
    secret = secrets.token_hex(16)
    monkeypatch.setenv("SOME_API_KEY", secret)
    monkeypatch.setenv("PGPASSWORD", "it's a long password")
    for begin in range(30, 60):
        assert secret[:6] not in short("x" * begin + secret + "x" * 90)
    for begin in range(2640, 2670):
        text = "x" * begin + secret + "x" * 5000
        assert secret[:6] not in str(RequestError(text)) + one_line(text)
    for begin in range(170, 310, 7):
        assert secret[:6] not in store.reason(RuntimeError("x" * begin + secret + "x" * 300))
    answer = (
        "API request to endpoint /a failed with error code 400 != 200. Response body: 'it's "
        "a long password is wrong'"
    )
    assert store.reason(RuntimeError(answer)) == "HTTP 400: ... is wrong"


def test_what_mlflow_is_told_of_a_run_has_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = secrets.token_hex(16)
    monkeypatch.setenv("HUB_TOKEN", secret)
    monkeypatch.setitem(
        sys.modules, "mlflow.entities", SimpleNamespace(Param=lambda key, value: (key, value))
    )
    told = []

    def create_run(*values: object) -> SimpleNamespace:
        told.append(values)
        return SimpleNamespace(info=SimpleNamespace(run_id="1"))

    run = queued(tmp_path)
    config, record = run.read_config(), run.read_record()
    config.data.options = {"at": f"https://host/{secret}"}
    run.write_config(config)
    assert record is not None
    record.label, record.command = f"label {secret}", f"dks train note={secret}"
    record.attempts.append(Attempt(now(), "here", 1, f"cuda {secret}", 1))
    client: Any = SimpleNamespace(create_run=create_run)
    upload = _Upload(run, record, Destination(client, "uri", "1"))
    upload.create()
    params = upload.params
    assert dict(params)["data.options.at"] == "https://host/..."  # type: ignore[call-overload]
    ((_, _, tags, name),) = told
    assert (name, tags["mlflow.source.name"], tags["dks.device"]) == (
        "label ...",
        "dks train note=...",
        "cuda ...",
    )
    assert secret not in str(told) + str(params)


def test_long_texts_are_read_quickly() -> None:
    """None of these takes as long as the square of its length."""
    began = time.monotonic()
    for piece in (
        "a",
        "://:",
        "https://",
        "password='",
        "x=1 password=2 ",
        "&api-",
        ";key_",
        "authorization: ",
        'authorization: a="',
        "password=\"' ",
        "x=y\n",
        "\x00",
    ):
        without_password(piece * (100_000 // len(piece)))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "uri", ["http://me:{}@host:5000", "postgresql://me:{}@host/db", "mysql://host/db?password={}"]
)
def test_a_password_in_a_uri_is_refused_and_kept_nowhere(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dks.cli import main as cli

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
    monkeypatch.setattr(
        "dks.runs.terminal.RunView.stepped",
        raise_at(1, RuntimeError(f"postgresql://me:{secret}@host/db says no")),
    )
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
        (
            "MLFLOW_TRACKING_TOKEN",
            "MLFLOW_TRACKING_PASSWORD",
            "AWS_SECRET_ACCESS_KEY",
            "WANDB_API_KEY",
            "MY_PASSWORD",
        ),
        secret,
    )
    sweep = (*TINY, "seed=1,2", "hydra.launcher.slots=2")
    with watching_command_lines(secret) as seen:
        status, out, err = train(tmp_path, "-m", *sweep, MLFLOW_TRACKING_USERNAME="me", **variables)
        assert status == 0, err
        assert secret not in out + err
        (results,) = (tmp_path / "results").iterdir()
        for command in (
            ["report", results.name],
            ["table", results.name],
            ["sweep", "status", results.name],
            ["sync"],
        ):
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
        lambda folder, secret: (folder / "some.log").write_bytes(
            b64encode(f"ann:{secret}".encode())
        ),
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
