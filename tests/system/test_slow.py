"""What takes minutes: the main job with its real recipe, and real photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, sampled, train

PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "cifar10-jpeg"

pytestmark = pytest.mark.slow


def final_errors(folder: Path) -> list[dict[str, float]]:
    return [json.loads(path.read_text())["final"] for path in folder.glob("runs/*/record.json")]


def test_the_main_job_learns_to_read_digits(in_folder: Path) -> None:
    designs, strategies = sampled(
        ("ours,shallow,narrow", "topdown,bottomup,bidir"), ("ours,narrow", "bidir")
    )
    status, _, err = train(in_folder, "-m", f"aux={designs}", f"strategy={strategies}")
    assert status == 0, err
    errors = [
        final[f"test/top1_error{name}"]
        for final in final_errors(in_folder)
        for name in ("", "_c2", "_c3")
    ]
    assert len(errors) == sampled(27, 6)
    assert max(errors) < 5, errors


@pytest.mark.timeout(1500)
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the CIFAR-10 Parquet files are not at hand")
def test_one_epoch_on_real_photographs_is_well_below_chance(in_folder: Path) -> None:
    arguments = [
        "backbone=resnet8",
        "compute=fast",
        "data=parquet",
        f"data.root={PHOTOGRAPHS}",
        "recipe.epochs=1",
    ]
    status, out, err = train(in_folder, *arguments)
    assert status == 0, err
    (final,) = final_errors(in_folder)
    assert final["test/top1_error"] < 75, out
    record = json.loads(
        next(in_folder.glob("runs/*/config.yaml")).with_name("record.json").read_text()
    )
    assert record["choices"]["data"] == "parquet"
    assert "name: cifar10-jpeg" in next(in_folder.glob("runs/*/config.yaml")).read_text()
