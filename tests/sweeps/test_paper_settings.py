"""The paper's numbers stand beside its settings, whatever a sweep is called, and beside nothing
else.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config import folders
from dks.config.compose import Composer, compose_here
from dks.results import render
from dks.results.model import Table
from dks.results.provenance import provenance
from dks.results.report.page import page
from dks.results.shape import Over
from dks.results.sheet import sheets
from dks.results.study import Study
from dks.sweeps import manifest
from dks.sweeps.plan import plan
from dks.sweeps.spec import expand
from tests.conftest import ROOT


@pytest.fixture
def declared(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose `conf/` and `sweeps/` can be edited; nothing has run in the current folder.

    Of Table 3, one design.
    """
    for name in ("conf", "sweeps", "analysis/paper"):
        shutil.copytree(ROOT / name, in_folder / "checkout" / name)
    monkeypatch.setattr(folders, "PACKAGE", in_folder / "checkout" / "dks")
    edit(
        in_folder / "checkout" / "sweeps" / "table3.yaml",
        "[ap_2fc, ap_conv_2fc, narrow, shallow, ours]",
        "shallow",
    )
    return in_folder / "checkout"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


def printed(table: Table) -> dict[str, str]:
    """Place -> the paper's top-1 error beside it."""
    found = {
        " ".join((*row, *column)): cell.numbers[0].paper
        for (row, column), cell in table.cells.items()
    }
    return {place: number.mean for place, number in found.items() if number is not None}


def notes(table: Table) -> list[str]:
    return [note for note in sheets(table)[0].notes if "paper" in note]


def typed(*overrides: str) -> Table:
    """The table of an ad-hoc sweep, before anything of it has run."""
    grid = expand(OverridesParser.create().parse_overrides(list(overrides)))
    (asked,) = plan(grid, Composer(compose_here), absent_ok=True).manifests()
    manifest.write(asked, "results")
    return Study.open(asked.name).table()


@pytest.mark.slow
def test_an_edited_file_of_a_table_has_none_of_its_numbers_and_says_why(declared: Path) -> None:
    edit(
        declared / "sweeps" / "table3.yaml",
        "base: {data: cifar100, backbone: resnet32}",
        "base: {data: digits, backbone: resnet8, recipe.epochs: 2}",
    )
    study = Study.open("table3")
    table = study.table()
    assert (
        table.title == "Table 3, designs of the auxiliary classifiers (ResNet-32 on CIFAR-100)"
    ), "it is the user's text"
    (note,) = notes(table)
    assert note == (
        "not the paper's setting, so its numbers are not shown: "
        "backbone=resnet8 (paper: resnet32); data=digits (paper: cifar100); recipe=digits "
        "(paper: cifar_resnet)"
    )
    for form in ("md", "latex", "html"):
        text = render.TEXT_FORMATS[form](table)
        assert "not the paper" in text and "29.39" not in text and "difference" not in text, form
    lines = list(csv.DictReader(io.StringIO(render.comma_separated(table))))
    assert {(line["paper_mean"], line["paper_gain"], line["difference"]) for line in lines} == {
        ("", "", "")
    }
    assert all("data=digits (paper: cifar100)" in line["differs"] for line in lines)
    (told,) = json.loads(render.as_json([table]))
    assert [cell["metrics"]["top1"]["paper"] for cell in told["cells"]] == [None] * 3
    assert not any(cell["paper"] for cell in provenance(study, table)["cells"])
    assert "29.39" not in page(study)


def test_a_number_of_another_table_says_where_it_is_from(declared: Path) -> None:
    """A file that is called after Table 2 and holds configurations of Table 1, and one that the
    paper has not.
    """
    edit(declared / "sweeps" / "table2.yaml", "data: imagenet", "data: cifar100")
    edit(
        declared / "sweeps" / "table2.yaml",
        "[resnet18, resnet50, resnet152]",
        "[resnet32, resnet8]",
    )
    edit(
        declared / "sweeps" / "table2.yaml",
        "[squash_crop, squash_crop, inception]",
        "[pad_crop, pad_crop]",
    )
    table = Study.open("table2").table()
    assert printed(table) == {
        "resnet32 baseline": "29.97",
        "resnet32 ds": "29.89",
        "resnet32 dks": "26.81",
    }
    number = table.cells[("resnet32", "dks"), ()].numbers[0].paper
    assert number is not None and (number.sd, number.gain, number.where) == (
        "0.36",
        "3.16",
        "Table 1",
    )
    first, *others = notes(table)
    assert first == "the paper's numbers: Table 1"
    assert others == ["not the paper's setting: the paper's table has no such configuration"]


@pytest.mark.slow
def test_a_change_to_a_recipe_makes_other_settings_of_all_sweeps(declared: Path) -> None:
    assert printed(Study.open("table3").table()) == {
        "none baseline": "29.97",
        "shallow ds": "29.39",
        "shallow dks": "28.69",
    }
    edit(declared / "conf" / "recipe" / "cifar_resnet.yaml", "epochs: 200", "epochs: 20")
    table = Study.open("table3").table()
    assert printed(table) == {} and len(table.cells) == 3
    assert notes(table) == [
        "not the paper's setting, so its numbers are not shown: the paper's table has no such "
        "configuration"
    ]


def test_an_ad_hoc_sweep_has_the_numbers_of_the_configurations_that_it_holds(
    in_folder: Path,
) -> None:
    table = typed(
        "data=cifar100",
        "backbone=resnet32",
        "method=baseline,dks",
        "recipe.weight_decay=0.0001,0.001",
        "seed=1,2",
    )
    assert printed(table) == {"baseline 0.0001": "29.97", "dks 0.0001": "26.81"}
    number = table.cells[("dks",), ("0.0001",)].numbers[0].paper
    assert number is not None and (number.gain, number.gain_over, number.where) == (
        "3.16",
        "baseline",
        "Table 1",
    )
    assert table.gains == (Over.baseline,) and notes(table) == ["the paper's numbers: Table 1"]
    heads = [heading.text for heading in sheets(table)[0].head[-1]]
    assert heads == ["error", "paper", "paper's gain", "difference", "n", "error", "n"]


@pytest.mark.slow
def test_a_file_of_ones_own_has_the_numbers_of_the_configurations_that_it_holds(
    declared: Path,
) -> None:
    """Single paths, distillation at temperatures that the paper tried and at others, half
    precision, held-out images.
    """
    (declared / "sweeps" / "mine.yaml").write_text(
        "title: Mine\n"
        "table: {rows: [method, positions, kd_teacher.temperature, compute, data.holdout], "
        "metrics: [top1, top5]}\n"
        "base: {data: imagenet, backbone: resnet18}\n"
        "grids:\n"
        "  - {method: [single, dks], positions: c2, seed: 3}\n"
        "  - {method: kd_c1, kd_teacher.temperature: [5, 7]}\n"
        "  - {method: kd_c1_ds, choose: {kd_teacher.temperature: [1, 20], holdout: 500}}\n"
        "  - {method: kd_c2c3_ds, choose: {kd_teacher.temperature: [1, 7], holdout: 500}}\n"
        "  - {method: ds, compute: fast}\n"
        "  - {method: baseline, data.holdout: [0, 5000]}\n"
    )
    table = Study.open("mine").table()
    assert printed(table) == {
        "single c2 - - -": "30.69",
        "dks c2 - - -": "29.64",
        "kd_c1 - 5 - -": "29.71",
        # it was among the temperatures that the paper tried, whichever is chosen
        "kd_c1_ds - - - -": "29.38",
        "ds - - fast -": "30.46",
        "baseline - - - 0": "31.06",
    }
    assert [
        number.paper.mean
        for number in table.cells[("single", "c2", "-", "-", "-"), ()].numbers
        if number.paper
    ] == ["30.69", "11.05"]
    first, *others = notes(table)
    assert first == (
        "the paper's numbers: Table 6; of ds - - fast -, baseline - - - 0: Table 2; "
        "of single c2 - - -: Table 5; of dks c2 - - -: Table 4"
    )
    assert not others, "it is called after no table of the paper's"


@pytest.mark.slow
def test_images_of_another_source_are_not_the_papers(declared: Path) -> None:
    """Parquet files may hold the images of CIFAR-100, but nothing can tell."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    Image.new("RGB", (32, 32)).save(png := io.BytesIO(), "PNG")
    for split in ("train", "test"):
        images = [{"bytes": png.getvalue(), "path": None}] * 200
        pq.write_table(
            pa.table({"image": images, "label": [*range(100)] * 2}),
            declared / f"{split}-00000-of-00001.parquet",
        )
    edit(
        declared / "sweeps" / "table3.yaml",
        "data: cifar100",
        f"data: parquet, data.root: {declared}",
    )
    table = Study.open("table3").table()
    assert printed(table) == {}
    assert notes(table)[0].startswith(
        "not the paper's setting, so its numbers are not shown: data=parquet (paper: cifar100)"
    )


@pytest.mark.slow  # a network for every setting
def test_the_ids_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "analysis")
    import identify

    assert len(identify.FILES) == 10
    for path in identify.FILES:
        text = path.read_text(encoding="utf-8")
        assert identify.identified(text) == text, "python analysis/identify.py"
