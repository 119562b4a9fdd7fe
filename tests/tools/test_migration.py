"""`dks runs migrate`, on runs that version 1 of the identity made (tests/version1/README.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dks.cli.main import main
from dks.config.identity import cell_id
from dks.config.schema import Config, KdTeacher, Precision, TeacherKind
from dks.data.version1 import old_fingerprint
from dks.results.render import as_json
from dks.results.study import Study
from dks.runs.earlier import earlier_runs
from dks.runs.record import Record, RunFolder, Status
from dks.sweeps import manifest
from dks.tools.migration import migrate
from dks.tracking.mlflow_source import MlflowSource
from dks.tracking.records import RecordSource
from dks.tracking.sync import sync
from tests.conftest import ROOT, composed, config
from tests.support.tracking_services import mlflow_client

Run = Callable[..., tuple[int, str, str]]

NOW = {
    "1f07c9854e21": "4698ef4a3ce1",
    "3d789c1c3ed6": "d4ee08b67f5d",
    "49d3312e1f04": "92ed24ae90b3",
    "796d71f0c1bb": "eeb62af884d2",
    "79aabfbaec9e": "d8c0897008b7",
    "ecf914f83380": "80081e6f7d87",
    "f97a6b248062": "d291809fee21",
}
STAY = {
    "403008eec298": "recipe.uniform_gamma: the first weights of the backbone depended on the "
    "branches",
    "b50cf7dd9942": "d8c0897008b7 computes the same, and is there",
    "df3a85d65773": "d4ee08b67f5d computes the same, and is there",
}
OTHER = (
    "4 runs have the ids of an earlier version; dks runs migrate gives them today's where "
    "nothing differs"
)


@pytest.fixture
def then(in_folder: Path) -> Path:
    """A folder as version 1 left it."""
    for name in ("runs", "results"):
        shutil.copytree(ROOT / "tests" / "version1" / name, in_folder / name)
    return in_folder


def table() -> list[dict[str, Any]]:
    tables = Study.begun("results", manifest.read("results", "mine")).tables()
    told: list[dict[str, Any]] = json.loads(as_json(tables))
    return told


def numbers() -> list[tuple[Any, ...]]:
    cells = table()[0]["cells"]
    return [(cell["row"], cell["metrics"]["top1"]) for cell in cells]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".json", ".yaml")
    }


@pytest.mark.slow
def test_runs_of_version_1_get_their_ids_of_today_and_tables_stay_the_same(
    then: Path, run_here: Run
) -> None:
    before, uids = numbers(), {run.cell_id: run.read_record().uid for run in earlier_runs("runs")}  # type: ignore[union-attr]
    report = migrate("runs", "results")
    assert {fate.cell_id: fate.now for fate in report.fates if not fate.why} == NOW
    assert {fate.cell_id: fate.why for fate in report.fates if fate.why} == STAY
    assert (report.sweeps, report.untold) == (["mine"], [])
    assert {path.name for path in then.glob("runs/*")} == {*NOW.values(), *STAY}
    for old, now in NOW.items():
        record = RunFolder(then / "runs" / now).read_record()
        assert record is not None and (record.cell_id, record.uid, record.schema_version) == (
            now,
            uids[old],
            2,
        )
    assert numbers() == before and len(before) == 2
    assert (
        RunFolder(then / "runs" / NOW["796d71f0c1bb"]).read_config().kd_teacher.cell
        == NOW["1f07c9854e21"]
    )
    # The command of then finds all its cells, in whatever words.
    common = ("recipe.epochs=2", "threads=1")
    _, out, err = run_here("-m", "method=baseline,dks", "seed=1,2", "data.image_size=8", *common)
    assert "all 4 cells are done, nothing to launch" in err and "earlier version" not in out + err
    _, _, err = run_here("loss.beta=0", "seed=1", *common)
    assert "the cell is done, nothing to launch" in err
    again = migrate("runs", "results")
    assert {fate.cell_id for fate in again.fates} == STAY.keys() and again.sweeps == []


@pytest.mark.slow
def test_they_are_told_and_counted_before(
    then: Path, run_here: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, err = run_here(
        "-m", "method=baseline", "seed=3,4", "recipe.epochs=1", "hydra.sweeper.show=text"
    )
    assert (
        "in runs 10 runs have the ids of an earlier version, which are none of these cells; dks "
        "runs migrate" in out + err
    )
    (told,) = table()
    assert (told["earlier"], told["states"]) == (OTHER, {"done": 4})
    for command in (
        ["table", "mine"],
        ["sweep", "status", "mine"],
        ["sweep", "list"],
        ["sweep", "status", "mine", "--json"],
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert OTHER in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["runs", "migrate", "--dry-run", "--json"])
    fates = json.loads(capsys.readouterr().out)["fates"]
    assert {fate["cell_id"]: fate["now"] for fate in fates if not fate["why"]} == NOW
    assert len(earlier_runs("runs")) == 10, "nothing was done"


@pytest.mark.slow
def test_a_store_knows_them_by_their_new_ids(then: Path) -> None:
    uri = "sqlite:///mlflow.db"
    for path in then.glob("runs/*/config.yaml"):
        path.write_text(
            path.read_text().replace("kind: 'off'\n  uri: null", f"kind: local\n  uri: {uri}")
        )
    assert not sync("runs").failed
    before = MlflowSource(uri).runs().set_index("cell_id")
    assert {*before.index} == {*NOW, *STAY} and set(before["schema_version"]) == {1}
    for note in then.glob("runs/*/mlflow.json"):  # as version 1 wrote it
        note.write_text(
            json.dumps(
                {
                    key: value
                    for key, value in json.loads(note.read_text()).items()
                    if key != "cell_id"
                }
            )
        )
    assert migrate("runs", "results").untold == []
    after = MlflowSource(uri).runs().set_index("cell_id")
    assert {*after.index} == {*NOW.values(), *STAY}
    for old, now in NOW.items():
        assert (after.loc[now, "mlflow_run_id"], after.loc[now, "schema_version"]) == (
            before.loc[old, "mlflow_run_id"],
            2,
        )
        assert after.loc[now, "final/test/top1_error"] == before.loc[old, "final/test/top1_error"]
    place = mlflow_client(uri).download_artifacts(
        after.loc[NOW["796d71f0c1bb"], "mlflow_run_id"], "config.yaml", str(then)
    )
    assert f"cell: {NOW['1f07c9854e21']}" in Path(place).read_text()
    columns = [
        "config_id",
        "seed",
        "method",
        "schema_version",
        "final/test/top1_error",
        "best/test/top1_error",
    ]
    pd.testing.assert_frame_equal(
        *(
            source.runs().set_index("cell_id").sort_index()[columns]
            for source in (MlflowSource(uri), RecordSource("runs"))
        )
    )
    assert not sync("runs").failed
    assert sum(sent.points + sent.told for sent in sync("runs").runs) == 0


@pytest.mark.parametrize("killed", ["write_config", "write_record", "rename"])
def test_whoever_is_killed_goes_on(
    then: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    before = numbers()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(Path if killed == "rename" else RunFolder, killed, die)
            with pytest.raises(KeyboardInterrupt):
                migrate("runs", "results")
    migrate("runs", "results")
    assert {path.name for path in then.glob("runs/*")} == {*NOW.values(), *STAY}
    assert numbers() == before and table()[0]["earlier"] is None


def test_a_run_that_somebody_works_on_stays_for_now(then: Path) -> None:
    busy = RunFolder(then / "runs" / "1f07c9854e21")
    assert busy.claim()
    fates = {fate.cell_id: fate for fate in migrate("runs", "results").fates}
    assert (
        fates["1f07c9854e21"].why == "a process works on it; end it, or wait for it, and try again"
    )
    busy.release()
    (moved,) = [fate for fate in migrate("runs", "results").fates if not fate.why]
    assert (moved.cell_id, moved.now) == ("1f07c9854e21", NOW["1f07c9854e21"])


def test_no_finished_run_makes_room_for_one_that_is_not_done(then: Path) -> None:
    old, now = "ecf914f83380", NOW["ecf914f83380"]
    shutil.copytree(then / "runs" / old, begun := then / "runs" / now)
    record = RunFolder(begun).read_record()
    assert record is not None
    RunFolder(begun).write_record(
        replace(record, cell_id=now, status=Status.failed, schema_version=2)
    )
    before = numbers()
    fates = {fate.cell_id: fate for fate in migrate("runs", "results").fates}
    assert (
        fates[old].why
        == f"{now} computes the same, and is there, but not done; remove that folder, and try again"
    )
    assert numbers() == before
    shutil.rmtree(begun)
    assert [fate.now for fate in migrate("runs", "results").fates if not fate.why] == [now]
    assert numbers() == before


# --- what is computed in another way today


def put(folder: Path, name: str, of: Config, **record: Any) -> RunFolder:
    """A run as version 1 would have left it."""
    run = RunFolder(folder / "runs" / name)
    run.path.mkdir(parents=True)
    run.write_config(of)
    run.write_record(
        Record(
            name,
            name[::-1],
            of.seed,
            "dks",
            {},
            "",
            [],
            status=Status.done,
            schema_version=1,
            **record,
        )
    )
    return run


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=dks", "recipe.uniform_gamma=true"], "recipe.uniform_gamma"),
        (["method=baseline", "recipe.uniform_gamma=true"], None),
        (["data.holdout=32", "noise=uniform", "label_noise.ratio=0.5"], "data.holdout"),
        (["data.holdout=32"], None),
        (["noise=uniform", "label_noise.ratio=0.5"], None),
        (["recipe.epochs=25", "recipe.milestones=[0.28]"], "recipe.milestones"),
        (["recipe.epochs=25", "recipe.milestones=[0.28]", "recipe.schedule=cosine"], None),
        (["recipe.epochs=25", "recipe.milestones=[0.32,0.8]"], None),
    ],
)
def test_a_run_that_computes_something_else_today_stays(
    in_folder: Path, overrides: list[str], reason: str | None
) -> None:
    put(in_folder, "a" * 12, replace(config(*overrides), recipe=composed(*overrides).config.recipe))
    (fate,) = migrate("runs", "results", dry=True).fates
    assert (fate.why.partition(":")[0] or None, fate.now is None) == (reason, reason is not None)


def whys(of: dict[str, Config]) -> dict[str, str]:
    """What is said of each of these runs, which stay for some reason or do not."""
    for name, each in of.items():
        put(Path(), name * 12, each)
    return {fate.cell_id[0]: fate.why for fate in migrate("runs", "results", dry=True).fates}


def taught(student: Config, cell: str, *students: str) -> Config:
    kd = KdTeacher(kind=TeacherKind.checkpoint, cell=cell * 12, students=list(students or ("c1",)))
    return replace(student, kd_teacher=kd)


@pytest.mark.usefixtures("in_folder")
def test_momentum_in_float16_and_the_order_of_three_students() -> None:
    one, two, half = config("method=dks"), config("method=dks", "seed=2"), config("seed=3")
    half.compute.precision = Precision.fp16
    said = whys(
        {
            "a": one,
            "b": taught(two, "a", "c1", "c3", "c2"),
            "c": taught(two, "a", "c3", "c1"),
            "d": half,
        }
    )
    assert {name: why.partition(":")[0] for name, why in said.items()} == {
        **{"a": "", "b": "kd_teacher.students", "c": "", "d": "compute.precision=fp16"}
    }


@pytest.mark.usefixtures("in_folder")
def test_a_student_follows_its_teacher() -> None:
    plain, other = config("method=baseline"), config("method=baseline", "seed=2")
    white = replace(plain, recipe=replace(plain.recipe, mean=[0.5] * 3, std=[0.5] * 3))
    gone = config("method=dks", "recipe.uniform_gamma=true")
    teachers = {"a": plain, "b": white, "c": gone}
    said = whys(
        teachers
        | {
            "d": taught(other, "a"),
            "e": taught(other, "b"),
            "f": taught(other, "c"),
            "1": taught(other, "0"),
        }
    )
    assert (said["a"], said["b"], said["d"]) == ("", "", "")
    assert said["e"].startswith(
        "its teacher saw images that were normalised or sized as those of the student"
    )
    assert [said["f"], said["1"]] == [
        f"its teacher {name * 12} has no id of today" for name in "c0"
    ]


def test_images_are_known_by_their_content_where_they_are_those_of_then(in_folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (in_folder / "images" / split / name).mkdir(parents=True)
            for number in range(3):
                shade = tuple(np.random.default_rng(number).integers(0, 255, 3).tolist())
                Image.new("RGB", (8, 8), shade).save(
                    in_folder / "images" / split / name / f"{number}.bmp"
                )
    today = config(
        "data=imagefolder",
        "data.root=images",
        "data.augmentation=pad_crop",
        "data.image_size=8",
        "data.pad=1",
    )
    then = replace(today, data=replace(today.data, fingerprint=old_fingerprint(today.data)))
    assert then.data.fingerprint != today.data.fingerprint
    put(in_folder, "a" * 12, then)
    assert [fate.now for fate in migrate("runs", "results", dry=True).fates] == [cell_id(today)]
    Image.new("RGB", (9, 9)).save(in_folder / "images" / "train" / "ant" / "0.bmp")
    (fate,) = migrate("runs", "results", dry=True).fates
    assert (
        fate.why
        == "the files in data.root=images are not those of then, or are not read as they were"
    )
    shutil.rmtree(in_folder / "images")
    (fate,) = migrate("runs", "results").fates
    assert (
        fate.why
        == "the files in data.root=images are not those of then, or are not read as they were"
    )
    assert RunFolder("runs/" + "a" * 12).read_config() == then
