"""A run knows the floating-point operations of its training, where they can be known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dks.config.errors import RequestError
from dks.training import flops
from tests.conftest import finished_run


def test_a_run_knows_the_operations_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path, "data.holdout=16", "compute=deterministic")
    record = run.read_record()
    assert record is not None
    step = flops.flops(run.read_config()).step
    assert record.cost["training_flops"] == step * (64 - 16) * 2 > 0, "48 images, two epochs"

    def unknown(config: Any) -> Any:
        raise RequestError("no image is there to see how large it is")

    monkeypatch.setattr(flops, "flops", unknown)
    other = finished_run(tmp_path, "seed=1").read_record()
    assert other is not None
    assert "training_flops" not in other.cost
