"""The best epoch: each classifier of a network has its own, whoever tells it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dks.results import render
from dks.results.model import Table
from dks.results.provenance import provenance
from dks.results.report.page import page
from dks.results.shape import Epoch, Over
from dks.results.study import Study
from dks.runs.record import Attempt, Record, RunFolder, Status, results_of
from dks.runs.states import State
from dks.sweeps.engine import run_summary
from dks.tracking.records import RecordSource
from dks.training.resolver import resolve
from tests.conftest import composed
from tests.support.published import publish

TIME = "2019-06-03T12:00:00.000+00:00"
# Epoch -> top-1 and top-5 test errors of c1, c2 and c3. Their best epochs are 2, 3 and 1; each has
# a lower top-5 elsewhere.
ERRORS = {
    1: {"": (30.0, 8.0), "_c2": (40.0, 7.0), "_c3": (22.0, 9.0)},
    2: {"": (20.0, 10.0), "_c2": (50.0, 20.0), "_c3": (45.0, 8.0)},
    3: {"": (25.0, 9.0), "_c2": (35.0, 11.0), "_c3": (46.0, 7.0)},
}
OWN = {
    **{
        "best/epoch": 2,
        "best/test/top1_error": 20.0,
        "best/test/top5_error": 10.0,
        "best/train/loss": 2.0,
    },
    **{
        "best/epoch_c2": 3,
        "best/test/top1_error_c2": 35.0,
        "best/test/top5_error_c2": 11.0,
        "best/train/loss_c2": 3.5,
    },
    **{
        "best/epoch_c3": 1,
        "best/test/top1_error_c3": 22.0,
        "best/test/top5_error_c3": 9.0,
        "best/train/loss_c3": 1.5,
    },
}


def measured(run: RunFolder) -> None:
    """A journal with these errors, instead of the one that is there."""
    run.journal.path.unlink(missing_ok=True)
    for epoch, classifiers in ERRORS.items():
        metrics = {"train/loss": float(epoch), "train/images_per_second": 1.0}
        for ending, (top1, top5) in classifiers.items():
            metrics |= {f"test/top1_error{ending}": top1, f"test/top5_error{ending}": top5}
            metrics |= {f"train/loss{ending}": epoch + 0.5} if ending else {}
        run.journal.append(epoch, epoch, metrics)


def made(seed: int, status: Status = Status.done, of_today: bool = True) -> RunFolder:
    """A run with these errors in `runs/`.

    Earlier versions kept all metrics of c1's best epoch as the best ones.
    """
    config = resolve(composed("method=dks", f"seed={seed}", "recipe.epochs=3", "tracking=off"))
    run = RunFolder(Path("runs") / f"{seed:012x}")
    run.path.mkdir(parents=True)
    run.write_config(config)
    measured(run)
    entries = run.journal.read()
    attempt = Attempt(TIME, "host", 1, "cpu", 1, ended=TIME, status=status.value, seconds=1.0)
    record = Record(
        run.cell_id, "config", seed, "dks", {}, "", [], status=status, attempts=[attempt]
    )
    if status is Status.done:
        record.final, record.best, record.cost = results_of(entries)
        if not of_today:
            record.best = {"epoch": 2, **entries[1].metrics}
    run.write_record(record)
    return run


def test_folders_tell_the_best_epoch_of_each_classifier(in_folder: Path) -> None:
    """Of runs that today's and earlier versions recorded, and of one that is not finished.

    Stores are in test_sources.py.
    """
    made(1), made(2, of_today=False), made(3, Status.killed)
    told = RecordSource("runs").runs()
    assert set(told.filter(like="best/")) == {*OWN, "best/train/images_per_second"}
    for _, run in told.iterrows():
        assert {name: run[name] for name in OWN} == OWN, run["cell_id"]


def test_an_old_record_whose_journal_is_gone_tells_of_c1_alone(in_folder: Path) -> None:
    run = made(1, of_today=False)
    run.journal.path.unlink()
    (told,) = RecordSource("runs").runs().to_dict("records")
    assert (told["best/epoch"], told["best/test/top1_error"]) == (2, 20.0)
    assert math.isnan(told.get("best/test/top1_error_c2", math.nan)), (
        "what c2 erred in the best epoch of c1 is not its best"
    )


def test_a_single_run_says_which_epoch_was_the_best_of_each_classifier(in_folder: Path) -> None:
    for seed, of_today in ((1, True), (2, False)):
        run = made(seed, of_today=of_today)
        lines = run_summary(State.done, run.read_record(), run.path).splitlines()
        assert [" ".join(line.split()) for line in lines[1:]] == [
            "c1 25.00 / 9.00 (20.00 / 10.00 in epoch 2)",
            "c2 35.00 / 11.00 (35.00 / 11.00 in epoch 3)",
            "c3 46.00 / 7.00 (22.00 / 9.00 in epoch 1)",
        ]


@pytest.fixture
def table_5(in_folder: Path) -> Study:
    """The paper's Table 5, but for the run of DKS, which has the errors above.

    An earlier version recorded it.
    """
    for run in publish(in_folder, "table5"):
        record = run.read_record()
        assert record is not None
        if record.method == "dks":
            measured(run)
            entries = run.journal.read()
            epochs = run.read_config().recipe.epochs
            record.final = {"epoch": epochs, **entries[2].metrics}
            record.best = {"epoch": 2, **entries[1].metrics}
            run.write_record(record)
    return Study.open("table5")


def test_gains_of_table_5_are_over_the_best_epoch_of_each_classifier(table_5: Study) -> None:
    cells = table_5.table(Epoch.best).cells
    means = {row[0]: cells[row, ("dks",)].numbers for row, column in cells if column == ("dks",)}
    assert {name: tuple(number.mean for number in numbers) for name, numbers in means.items()} == {
        "c1": (20.0, 10.0),
        "c2": (35.0, 11.0),
        "c3": (22.0, 9.0),
    }
    gains = {
        name: tuple(round(number.gains[Over.alone], 2) for number in numbers)
        for name, numbers in means.items()
    }
    assert gains == {"c1": (11.06, 1.13), "c2": (-4.31, 0.05), "c3": (9.89, 2.51)}, (
        "over 31.06/11.13, 30.69/11.05, 31.89/11.51"
    )


def test_every_format_says_that_each_classifier_has_its_own_best_epoch(table_5: Study) -> None:
    table = table_5.table(Epoch.best)
    words = "best epoch of each classifier, chosen by the test error itself and so optimistic"
    for form in ("md", "latex", "html"):
        assert words in render.TEXT_FORMATS[form](table), form
    assert "best of each classifier" in render.comma_separated(table).splitlines()[1].split(",")
    assert json.loads(render.as_json([table]))[0]["epoch"] == "best of each classifier"
    assert provenance(table_5, table)["query"]["epoch"] == "best of each classifier"
    html = page(table_5, Epoch.best)
    assert "Best epoch of each classifier, chosen by the test error itself" in html
    assert '"best top-1 error_c2":[' in html, "for the panel behind a cell"
    assert (
        label_of_dots(table) == "top-1 test error (%), best epoch of each classifier (optimistic)"
    )
    plain = table_5.table()
    assert "of each classifier" not in render.markdown(
        plain
    ) and ",last," in render.comma_separated(plain)


def label_of_dots(table: Table) -> str:
    from dks.results.figures import draw

    label: str = draw("dots", table, None).axes[0].get_xlabel()  # type: ignore[arg-type]
    return label
