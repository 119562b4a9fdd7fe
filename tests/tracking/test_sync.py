"""`dks sync`: what it says, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dks.cli import main as cli
from tests.support.journaled import journaled
from tests.tracking.conftest import check, tracked, uri


def test_the_command_says_what_it_sent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dks(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["sync", *arguments])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    code, _, err = dks()
    assert code == 2 and "runs_dir=runs" in err
    one, other = journaled(here, *tracked()), journaled(here, "seed=1")
    code, out, _ = dks()
    assert code == 0
    assert f"{uri()}: 6 points of 1 run sent\n  {one.cell_id}  6 points  FINISHED\n" in out
    assert "tracking=off: 1 run left alone" in out
    code, out, _ = dks()
    assert (code, out.splitlines()[0]) == (
        0,
        f"{uri()}: 0 points of 0 runs sent; 1 run complete already",
    )
    code, out, _ = dks("--store", uri(), "--json", other.cell_id)
    assert (code, json.loads(out)) == (
        0,
        {
            "points": 6,
            "runs": [
                {
                    "cell_id": other.cell_id,
                    "uri": uri(),
                    "points": 6,
                    "status": "FINISHED",
                    "told": True,
                    "problem": None,
                    "superseded": None,
                }
            ],
        },
    )
    check(other)
    code, _, err = dks("--store", "postgresql://me:secret@host/db")
    assert code == 2 and "password" in err and "secret" not in err
    Path("mlflow.db").write_text("garbage")
    code, out, _ = dks(one.cell_id)
    assert code == 1
    assert f"1 run not sent ({one.cell_id}): tracking.uri={uri()} cannot be opened" in out
