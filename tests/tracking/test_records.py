"""Runs read from their folders: how they stand, and read again only when they changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dks.runs.record import RunFolder, Status
from dks.tracking.records import RecordSource
from tests.conftest import queued
from tests.support.journaled import ERROR, journaled


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_unfinished_run_stands_as_its_signs_say(tmp_path: Path) -> None:
    source = RecordSource(tmp_path / "runs")
    assert source.runs().empty
    assert len(source.histories(["nobody"], [ERROR])) == 0
    run = queued(tmp_path)
    assert source.runs().empty, "whoever planned it is gone"
    record = run.read_record()
    assert record is not None
    record.status = Status.running
    run.write_record(record)
    run.journal.append(1, 1, {ERROR: 70.0})
    (tmp_path / "runs" / "a_file").touch()
    (tmp_path / "runs" / "no_run").mkdir()
    assert source.runs()["state"].tolist() == ["killed"]
    assert run.claim()
    for epoch, error in ((2, 68.0), (3, 67.0)):
        run.journal.append(epoch, epoch, {ERROR: error})
        (found,) = source.runs()[["state", "epoch", f"best/{ERROR}"]].to_numpy().tolist()
        assert found == ["running", epoch, error]
    run.release()


def test_a_record_is_read_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (journaled(tmp_path, f"seed={seed}") for seed in (1, 2))
    read: list[str] = []
    original = RunFolder.read_record

    def counted(self: RunFolder) -> Any:
        read.append(self.cell_id)
        return original(self)

    monkeypatch.setattr(RunFolder, "read_record", counted)
    source = RecordSource(tmp_path / "runs")
    first = source.runs()
    assert sorted(read) == sorted([one.cell_id, other.cell_id])
    read.clear()
    pd.testing.assert_frame_equal(RecordSource(tmp_path / "runs").runs(), first)
    second = first["cell_id"][1]
    pd.testing.assert_frame_equal(source.runs([second]), first.iloc[1:].reset_index(drop=True))
    assert not read
    record = original(one)
    assert record is not None
    record.final[ERROR] = 12.5
    one.write_record(record)
    assert source.runs().set_index("cell_id")[f"final/{ERROR}"][one.cell_id] == 12.5
    assert read == [one.cell_id]
    # MLflow took the run after its record was written.
    other.mlflow_file.write_text('{"uri": "sqlite:///mlflow.db", "run_id": "f00", "epoch": 2}')
    known = source.runs().set_index("cell_id")["mlflow_run_id"].to_dict()
    assert known == {one.cell_id: None, other.cell_id: "f00"}
    shutil.rmtree(one.path)
    whole = source.runs()
    assert whole["cell_id"].tolist() == [other.cell_id]


def test_what_is_told_by_other_files_of_a_damaged_record_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = journaled(tmp_path)
    source = RecordSource(tmp_path / "runs")
    whole = source.runs()
    run.record_file.write_text("{")
    read: list[str] = []
    original = RunFolder.read_record
    monkeypatch.setattr(
        RunFolder, "read_record", lambda self: read.append(self.cell_id) or original(self)
    )
    told = ["cell_id", "config_id", "seed", "method", "epoch", f"final/{ERROR}", f"best/{ERROR}"]
    for times in (1, 2):
        pd.testing.assert_frame_equal(source.runs()[told], whole[told])
        assert len(read) >= times
