"""Backbones, branch designs, matching strategies and data sets that packages and files add."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dks
from dks import data
from dks.config.errors import RequestError
from dks.config.extensions import references
from dks.config.files import cache_folder, choices, load_choice, own_choices
from dks.config.identity import cell_id, config_id
from dks.config.methods import baseline_of
from dks.config.registry import ENTRY_POINTS, VARIABLE
from dks.config.schema import Backbone, Config
from dks.models import build_network
from dks.objectives import matching_pairs
from dks.tracking.mlflow_source import MlflowSource
from dks.tracking.records import RecordSource
from dks.tracking.sender import sent_elsewhere
from dks.tracking.store import open_client
from dks.tracking.sync import sync
from dks.training import resolver
from dks.training.run import Outcome, run_cell
from tests.conftest import ROOT, composed, config, finished_run, queued, raise_at, start

EXAMPLE = ROOT / "examples" / "pebbles"
NET = """
    from torch import nn
    from dks import extend

    @extend.backbone("mynet", version="1", taps={"c2": "two", "c3": "one"})
    class Net(nn.Sequential):
        def __init__(self, num_classes, *, width=4):
            super().__init__()
            self.one = nn.Conv2d(3, width, 3, padding=1)
            self.two = nn.Conv2d(width, 2 * width, 3, 2, 1)
            self.three = nn.Conv2d(2 * width, 4 * width, 3, 2, 1)
            self.end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes))
"""  # noqa: E501
PARTS = """
    import torch
    from torch import nn
    from dks import extend

    @extend.aux_design("probe", version="1")
    def probe(place, *, pool=2):
        classifier = nn.Linear(place.tap.channels * pool**2, place.num_classes)
        return nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten(), classifier)

    @extend.matching_strategy("ring", version="1")
    def ring(classifiers, *, back=False):
        pairs = list(zip(classifiers, [*classifiers[1:], classifiers[0]]))
        return [(n, m) for m, n in pairs] if back else pairs

    @extend.data("noise", classes=3, version="1", recipe="digits", pad=1)
    def noise(*, images=24):
        pixels = torch.randint(0, 256, (images, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
        return (pixels, torch.arange(images) % 3), (pixels[:12], torch.arange(12) % 3)
"""  # noqa: E501

Extend = Callable[..., Path]


@pytest.fixture
def extend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extend:
    """Write a file of extensions, a new one each time, and name it beside the earlier ones."""
    written: list[str] = []
    monkeypatch.setattr(resolver, "_built", {})  # networks that were looked at, by their names
    monkeypatch.setattr(data, "_loaded", {})

    def write(*texts: str, name: str = "extra.py") -> Path:
        file = tmp_path / f"extensions{len(written)}" / name
        file.parent.mkdir()
        file.write_text("\n".join(map(textwrap.dedent, texts)))
        written.append(str(file))
        monkeypatch.setenv(VARIABLE, os.pathsep.join(written))
        return file

    return write


def refusal(action: Callable[[], object]) -> str:
    """The one line with which a request is refused."""
    with pytest.raises(RequestError) as caught:
        action()
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem


def run_dks(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    process = start(["-m", "dks", *arguments], folder, **variables)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


# --- an installed package


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The value of PYTHONPATH with which the example is installed."""
    folder, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    subprocess.run(["cp", "-r", str(EXAMPLE), str(source)], check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, str(source / EXAMPLE.name)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return f"{folder}{os.pathsep}{ROOT}"


@pytest.mark.slow
def test_a_sweep_over_an_installed_package_ends_in_a_table(site: str, tmp_path: Path) -> None:
    cells = [
        "backbone=pebble,pebble_wide",
        "aux=linear_probe",
        "strategy=neighbours,bidir",
        "data=stripes",
    ]
    sweep = [
        "train",
        "-m",
        *cells,
        "recipe.epochs=1",
        "data.options.images=64",
        "tracking=off",
        "threads=1",
    ]
    status, out, err = run_dks(tmp_path, *sweep, "hydra.launcher.slots=2", PYTHONPATH=site)
    assert status == 0, err
    assert all(name in out for name in ("pebble_wide", "neighbours", "bidir"))
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 4
    records = [json.loads((folder / "record.json").read_text()) for folder in folders]
    neighbours = [each for each in records if each["choices"]["strategy"] == "neighbours"]
    package = {"package": "dks-pebbles", "package_version": "0.1.0"}
    names = {
        "backbone": "pebble",
        "aux_design": "linear_probe",
        "matching_strategy": "neighbours",
        "data": "stripes",
    }
    assert len(neighbours) == 2
    for record in neighbours:
        assert record["attempts"][0]["extensions"] == [
            {"kind": kind, "name": name, "version": "1", **package} for kind, name in names.items()
        ]
    status, _, err = run_dks(tmp_path, *sweep, PYTHONPATH=site)
    assert status == 0 and "all 4 cells are done, nothing to launch" in err

    cell = records[0]["cell_id"]
    status, out, err = run_dks(tmp_path, "evaluate", cell, PYTHONPATH=site)
    assert status == 0, err
    error = records[0]["final"]["test/top1_error"]
    assert f"{error:6.2f}" in out

    status, _, err = run_dks(tmp_path, "evaluate", cell)  # the package is not installed any more
    assert status == 2
    assert re.search(
        r"error: backbone.family=pebble is an extension, wanted in version 1, and is not here; .*"
        "; the run had it from: pip install dks-pebbles==0.1.0$",
        err,
        re.MULTILINE,
    )
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_examples_own_tests_pass(site: str, tmp_path: Path) -> None:
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
    ]
    process = start(
        [*command, str(EXAMPLE / "tests")], tmp_path, PYTHONPATH=site, PYTHONDONTWRITEBYTECODE="1"
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert "4 passed" in out


@pytest.mark.slow
def test_what_is_installed_is_listed(site: str, tmp_path: Path) -> None:
    status, out, _ = run_dks(tmp_path, "extensions", "--json", PYTHONPATH=site)
    assert status == 0
    listed = json.loads(out)
    assert listed["problems"] == []
    assert [(each["kind"], each["name"], each["version"]) for each in listed["extensions"]] == [
        ("aux_design", "linear_probe", "1"),
        ("backbone", "pebble", "1"),
        ("data", "stripes", "1"),
        ("matching_strategy", "neighbours", "1"),
    ]


def make_package(site: Path, name: str, text: str, *points: str) -> str:
    """A package as pip would have installed it, of one module, version 2.5.

    A value of PYTHONPATH that finds it.
    """
    facts = site / f"{name}-2.5.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    lines = "\n".join(f"{point} = {name}" for point in points)
    (facts / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{lines}\n")
    (site / name).mkdir()
    (site / name / "__init__.py").write_text(textwrap.dedent(text))
    return os.pathsep.join([str(site), str(ROOT)])


SPIES = [
    (("--help",), ""),
    (("train", "--help"), "trap"),
    (("train", "--cfg", "job"), ""),
    (("sweep", "list"), ""),
    (("train", "-sc", "query=bash"), "backbone=trap"),
]


@pytest.mark.slow
@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    ("arguments", "shown"), SPIES, ids=[" ".join(arguments) for arguments, _ in SPIES]
)
def test_an_extension_that_is_not_asked_for_is_not_imported(
    tmp_path: Path, arguments: tuple[str, ...], shown: str
) -> None:
    """Nor is torch; its name is known all the same."""
    path = make_package(tmp_path / "site", "trap", "raise SystemExit('imported')", "backbone.trap")
    program = (
        "import sys\nfrom dks.cli.main import main\ntry: main(sys.argv[1:])\n"
        "finally: print('imported:', *({'torch', 'trap'} & set(sys.modules)), file=sys.stderr)"
    )
    process = start(
        ["-c", program, *arguments],
        tmp_path,
        PYTHONPATH=path,
        COMP_LINE="python train.py backbone=tr",
    )
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert err.splitlines()[-1] == "imported:"
    assert shown in out


@pytest.mark.slow
def test_a_broken_package_disturbs_only_who_asks_for_it(tmp_path: Path) -> None:
    path = make_package(
        tmp_path / "site", "trap", "import nowhere", "backbone.trap", "network.other"
    )
    run = [
        "train",
        "data=synthetic",
        "data.image_size=8",
        "recipe.epochs=1",
        "tracking=off",
        "data.train_images=32",
    ]
    status, out, err = run_dks(tmp_path, *run, PYTHONPATH=path)
    assert status == 0 and "c3" in out
    assert (
        "warning: the package trap 2.5: the entry point network.other must be KIND.NAME, with a "
        "kind of backbone, " in err
    )
    status, _, err = run_dks(tmp_path, *run, "backbone=trap", PYTHONPATH=path)
    assert status == 2
    wanted = (
        "error: backbone.family=trap: the package trap 2.5 cannot be imported: "
        "ModuleNotFoundError: No module named 'nowhere' (__init__.py, line 1)"
    )
    assert wanted in err.splitlines()


@pytest.mark.slow
def test_a_package_without_a_version_of_its_extension_gives_its_own(tmp_path: Path) -> None:
    path = make_package(
        tmp_path / "site",
        "mine",
        NET.replace(', version="1"', ""),
        "backbone.mynet",
        "backbone.missing",
    )
    status, out, _ = run_dks(tmp_path, "extensions", "--json", PYTHONPATH=path)
    assert status == 1
    listed = json.loads(out)
    assert [(each["name"], each["version"]) for each in listed["extensions"]] == [("mynet", "2.5")]
    assert listed["problems"] == [
        "backbone.family=missing: the package mine 2.5, module mine, registers no such backbone; "
        "it registers backbone mynet"
    ]


# --- a file


@pytest.mark.slow
def test_a_named_sweep_runs_on_a_file_alone(tmp_path: Path, extend: Extend) -> None:
    """In worker processes, named by a path that is relative to the current folder."""
    file = extend(NET, PARTS)
    given = {VARIABLE: os.path.relpath(file, tmp_path)}
    sweep = ["methods", "backbone=mynet", "data=noise", "seed=1", "recipe.epochs=1"]
    status, out, err = run_dks(
        tmp_path,
        "sweep",
        "run",
        *sweep,
        "tracking=off",
        "threads=1",
        "hydra.launcher.slots=2",
        **given,
    )
    assert status == 0, err
    assert "missing" not in out and "dks" in out
    folder = next((tmp_path / "runs").iterdir())
    record = json.loads((folder / "record.json").read_text())
    backbone = record["attempts"][0]["extensions"][0]
    assert backbone["file"] == str(file) and len(backbone["sha256"]) == 64
    assert "family: mynet@1" in (folder / "config.yaml").read_text()
    status, again, err = run_dks(
        tmp_path, "table", *sweep, "--format", "md", "--output", "methods.md", **given
    )
    assert status == 0, err
    assert "missing" not in again
    (results,) = (tmp_path / "results").iterdir()
    of_table, (of_file,) = (
        json.loads(path.read_text())
        for path in (results / "provenance.json", tmp_path / "methods.md.json")
    )
    had = [
        {"kind": kind, "name": name, "version": "1"}
        for kind, name in (("backbone", "mynet"), ("data", "noise"))
    ]
    named = [{**each, "file": "extra.py", "sha256": backbone["sha256"]} for each in had]
    for told in (of_table, of_file):
        assert told["extensions"] == named
        assert [run["extensions"] for cell in told["cells"] for run in cell["runs"]] == [named] * 3
        assert str(file.parent) not in json.dumps(told)
    status, _, err = run_dks(tmp_path, "evaluate", folder.name, **{VARIABLE: ""})
    assert status == 2
    assert f"; the run had it from {VARIABLE}={file} (sha256 {backbone['sha256'][:12]})" in err


@pytest.mark.slow
def test_the_extensions_of_all_attempts_are_told_by_folders_and_by_a_store(
    extend: Extend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changed between two attempts, and what somebody else wrote into a record or a
    tag.
    """
    file = extend(NET)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = queued(tmp_path, "backbone=mynet", "tracking.kind=local", f"tracking.uri={uri}")
    with sent_elsewhere():
        with monkeypatch.context() as patched:
            patched.setattr(
                "dks.runs.terminal.RunView.stepped", raise_at(1, RuntimeError("stopped"))
            )
            assert run_cell(folder.path) is Outcome.failed
        replace_text(file, "width=4", "width=4, unused=0", monkeypatch)
        monkeypatch.setattr(resolver, "_built", {})
        assert run_cell(folder.path) is Outcome.done
    record = folder.read_record()
    assert record is not None
    (first,), (second,) = (attempt.extensions for attempt in record.attempts)
    assert first["sha256"] != second["sha256"] and first["file"] == str(file)
    assert not sync(str(tmp_path / "runs"), [folder.cell_id]).failed
    for source in (RecordSource(tmp_path / "runs"), MlflowSource(uri)):
        for _ in range(2):  # the second time from what is kept
            (told,) = source.runs()["extensions"]
            assert told == [{**each, "file": "extra.py"} for each in (first, second)]
    record.attempts[0].extensions = ["odd", {"kind": 3, "file": "C:\\net.py", "other": "x"}, {}]  # type: ignore[list-item,dict-item]
    folder.write_record(record)
    (told,) = RecordSource(tmp_path / "runs").runs()["extensions"]
    assert told == [{"kind": "3", "file": "net.py"}, {**second, "file": "extra.py"}]
    client = open_client(uri)
    for tag in ("[", "{}", '["odd"]'):
        client.set_tag(MlflowSource(uri).runs()["mlflow_run_id"][0], "dks.extensions", tag)
        shutil.rmtree(cache_folder(), ignore_errors=True)
        assert MlflowSource(uri).runs()["extensions"].tolist() == [[]]


def test_the_file_of_the_documentation_works(extend: Extend) -> None:
    code = re.search(
        r"```python title=\"my_net.py\"\n(.*?)```",
        (ROOT / "docs" / "extending.md").read_text(),
        re.DOTALL,
    )
    assert code is not None
    extend(code[1])
    for design in ("ours", "shallow"):
        network = build_network(
            config("backbone=mynet", f"aux={design}", "backbone.options.width=8")
        )
        assert network(torch.zeros(2, 3, 8, 8)).keys() == {"c1", "c2", "c3"}


def test_a_folder_brings_its_config_files(extend: Extend, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = extend(NET).parent
    choice = folder / "conf" / "backbone" / "mynet_wide.yaml"
    choice.parent.mkdir(parents=True)
    choice.write_text(
        "family: mynet\ndepth: 3\nbranches: {c2: {stages: [{blocks: 1, width: 8}]}}\noptions: "
        "{width: 6}\n"
    )
    monkeypatch.setenv(VARIABLE, str(folder))
    assert {"mynet", "mynet_wide", "resnet8"} <= set(choices("backbone"))
    wide = config("backbone=mynet_wide", "positions=c2")
    assert (
        wide.backbone.options == {"width": 6} and wide.backbone.branches["c2"].stages[0].width == 8
    )
    assert wide.backbone.depth == 0, "an extension has none, whatever its file says"
    assert load_choice("backbone", "mynet_wide", Backbone).options == {"width": 6}


def test_short_and_long_names_mean_the_same(extend: Extend) -> None:
    extend(PARTS)
    short = config("aux=probe", "strategy=ring", "data=noise")
    long = config("aux_design=probe", "matching_strategy=ring", "data=noise")
    assert short == long
    assert (
        short.aux_design.kind == "probe@1"
        and short.matching_strategy.name == "ring@1"
        and short.data.source == "noise@1"
    )
    assert short.recipe.batch_size == load_choice_of_digits()
    assert "disagree" in refusal(lambda: config("aux=probe", "aux_design=ours"))


def load_choice_of_digits() -> int:
    from dks.config.schema import Recipe

    return load_choice("recipe", "digits", Recipe).batch_size


def test_python_has_the_same_names(extend: Extend) -> None:
    extend(NET, PARTS)
    net = dks.build("mynet", num_classes=5, aux_design="probe", aux_positions=("c2", "c3"))
    logits = net(torch.zeros(2, 3, 16, 16))
    assert {name: tuple(each.shape) for name, each in logits.items()} == {
        "c1": (2, 5),
        "c2": (2, 5),
        "c3": (2, 5),
    }
    assert net.strip()(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert matching_pairs("ring", logits) == [("c1", "c2"), ("c2", "c3"), ("c3", "c1")]
    assert matching_pairs("ring", logits, {"back": True})[0] == ("c2", "c1")
    one, other = (
        dks.SynergyLoss("ring", options={"back": back})(logits, torch.tensor([0, 1]))
        for back in (False, True)
    )
    assert one.parts.keys() == other.parts.keys() == {"loss_ce", "loss_aux", "loss_synergy"}
    assert one.total != other.total
    with pytest.raises(ValueError, match="nothing"):
        dks.SynergyLoss("nothing")


@pytest.mark.slow
def test_every_design_and_the_path_alone_work_on_a_backbone_from_a_file(extend: Extend) -> None:
    extend(NET)
    for design in ("ours", "narrow", "shallow", "ap_2fc", "ap_conv_2fc"):
        branches = build_network(config("backbone=mynet", f"aux={design}")).branches
        assert set(branches) == {"c2", "c3"}
    alone = build_network(config("backbone=mynet", "method=single", "positions=c3"))
    assert alone(torch.zeros(1, 3, 8, 8)).keys() == {"c1"}


def test_for_one_seed_the_backbone_starts_the_same_whatever_it_carries(extend: Extend) -> None:
    extend(NET, PARTS)
    starts = []
    for aux in ("none", "ours", "probe"):
        torch.manual_seed(3)
        starts.append(build_network(config("backbone=mynet", f"aux={aux}")).backbone.state_dict())
    for other in starts[1:]:
        assert all(torch.equal(value, other[name]) for name, value in starts[0].items())


# --- identity


@pytest.mark.slow
def test_version_and_options_of_an_extension_make_a_cell(
    extend: Extend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(text: str, *overrides: str) -> str:
        extend(text, name=f"extra{len(os.environ.get(VARIABLE, ''))}.py")
        latest = os.environ[VARIABLE].split(os.pathsep)[-1]
        with monkeypatch.context() as only:
            only.setenv(VARIABLE, latest)
            return cell_id(config("backbone=mynet", *overrides))

    first = identity(NET)
    assert identity(NET + "    # a remark\n") == first
    assert identity(NET, "backbone.options.width=4") == first
    assert identity(NET, "backbone.options.width=5") != first
    assert identity(NET.replace('"1"', '"2"')) != first
    assert identity(NET, "backbone.family=mynet@1") == first
    unversioned = NET.replace(', version="1"', "")
    assert (
        identity(unversioned) == identity(unversioned) != identity(unversioned + "    # a remark\n")
    )


def test_a_baseline_is_the_same_whatever_its_branches_would_be(extend: Extend) -> None:
    extend(NET, PARTS)
    plain = config("backbone=mynet", "method=baseline")
    for given in (
        ["aux=probe"],
        ["strategy=ring"],
        ["aux=probe", "strategy=ring", "aux_design.options.pool=3"],
    ):
        assert config_id(baseline_of(config("backbone=mynet", *given))) == config_id(plain)


def test_the_frozen_configuration_of_an_extension_is_read_as_it_was_written(
    extend: Extend, tmp_path: Path
) -> None:
    extend(NET, PARTS)
    folder = queued(
        tmp_path,
        "backbone=mynet",
        "aux=probe",
        "strategy=ring",
        "matching_strategy.options.back=true",
    )
    found = folder.read_config()
    assert cell_id(found) == folder.cell_id
    assert found.matching_strategy.options == {"back": True}
    assert references(found) == [
        ("backbone", "mynet@1"),
        ("aux_design", "probe@1"),
        ("matching_strategy", "ring@1"),
    ]


@pytest.mark.slow
def test_options_are_swept_like_any_key(
    extend: Extend, run_here: Callable[..., tuple[int, str, str]]
) -> None:
    extend(NET, PARTS)
    status, out, err = run_here(
        "-m",
        "data=noise",
        "backbone=mynet",
        "backbone.options.width=2,3",
        "recipe.epochs=1",
        "aux=probe",
    )
    assert status == 0, err
    assert "backbone.options.width" in out
    assert len(list(Path("runs").iterdir())) == 2


# --- what a run was trained with


def replace_text(file: Path, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change a file of extensions, as a process that starts now would find it."""
    changed = file.with_name("changed") / file.name
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(file.read_text().replace(old, new))
    monkeypatch.setenv(VARIABLE, str(changed))


def test_a_run_goes_on_only_with_its_version(
    extend: Extend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = extend(NET)
    folder = queued(tmp_path, "backbone=mynet")
    replace_text(file, 'version="1"', 'version="2"', monkeypatch)
    assert run_cell(folder.path) is Outcome.failed
    record = folder.read_record()
    assert record is not None and record.error is not None
    assert record.error["type"] == "RequestError"
    assert "backbone.family=mynet is wanted in version 1, and the file " in record.error["message"]
    assert " has version 2; " in record.error["message"]
    monkeypatch.setenv(VARIABLE, str(file))
    assert run_cell(folder.path) is Outcome.done


def test_a_file_that_changed_under_the_same_version_is_told(
    extend: Extend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from dks.tools.evaluate import evaluate_run

    file = extend(NET)
    folder = finished_run(tmp_path, "backbone=mynet")
    evaluate_run(str(tmp_path / "runs"), folder.cell_id)
    assert "is not what run" not in caplog.text
    replace_text(file, "width=4", "width=4, unused=0", monkeypatch)
    with caplog.at_level("WARNING"):
        evaluate_run(str(tmp_path / "runs"), folder.cell_id)
    assert (
        f"is not what run {folder.cell_id} was trained with, though its version is the same"
        in caplog.text
    )


# --- what is wrong is one line


# what is changed in a file, into what, and the message
BROKEN: dict[str, tuple[str, str, str, str]] = {
    "import": (
        NET,
        "from torch import nn",
        "1 / 0",
        "cannot be imported: ZeroDivisionError: division by zero",
    ),
    "name": (
        NET,
        '"mynet"',
        '"my" + "net"',
        "line 5: the first argument of backbone must be a name in quotes",
    ),
    "version": (NET, '"1"', '"1 a"', "backbone mynet: version='1 a' must be such as 1 or 2.1"),
    "option": (
        NET,
        "width=4",
        "width",
        "the option width needs a default that is a number, a text, a truth value or a list",
    ),
    "tap": (
        NET,
        '"c3": "one"',
        '"c3": "won"',
        "backbone mynet: c3: the module has no layer 'won'; did you mean two, one?",
    ),
    "module": (
        NET,
        "nn.Sequential):",
        "dict):",
        "backbone mynet: it gives an object of type Net, not a torch.nn.Module",
    ),
    "logits": (
        NET,
        "num_classes))",
        "3))",
        "backbone mynet: num_classes=10, but the module gives 3 logits",
    ),
    "design": (
        PARTS,
        "return nn.Sequential",
        "return str or nn.Sequential",
        "aux_design probe: it gives an object of type type,",
    ),
    "error": (
        PARTS,
        "place.num_classes",
        "'ten'",
        "aux_design probe: TypeError: empty(): argument 'size' ",
    ),
}


def test_a_wrong_option_names_the_choices(extend: Extend) -> None:
    extend(NET)
    message = refusal(lambda: config("backbone=mynet", "+backbone.options.depth=3"))
    assert message == "backbone.options.depth: backbone mynet has no such option; it has width"
    message = refusal(lambda: config("+backbone.options.width=3"))
    assert (
        message
        == "backbone.options={'width': 3} are for extensions; backbone.family=cifar_resnet has "
        "none, drop them"
    )
    message = refusal(lambda: config("backbone=mynet", "backbone.options.width=x"))
    assert message == "backbone.options.width=x: it must be of type int, as 4 is"


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_in_an_extension_is_one_line_that_names_it(extend: Extend, mistake: str) -> None:
    text, old, new, message = BROKEN[mistake]
    assert text.count(old) == 1
    extend(text.replace(old, new))
    assert message in refusal(
        lambda: compose_and_resolve("backbone=mynet" if text is NET else "aux=probe")
    )


def compose_and_resolve(*overrides: str) -> Config:
    from dks.config.compose import compose_here

    return resolver.resolve(compose_here(overrides))


def test_pairs_must_be_of_the_classifiers_that_are_trained(extend: Extend) -> None:
    extend(PARTS.replace("classifiers[0]]", '"c9"]'))
    message = refusal(lambda: matching_pairs("ring", ["c1", "c2"]))
    assert (
        message
        == "matching_strategy ring: [('c1', 'c2'), ('c2', 'c9')] must be pairs of two of c1, c2, "
        "each pair once"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ".to(torch.uint8)",
            "",
            "data noise: training set: images are torch.int64 (24, 3, 8, 8), not torch.uint8 (N, "
            "3, H, W)",
        ),
        ("% 3), (", "% 4), (", "data noise: training set: labels go from 0 to 3, not from 0 to 2"),
        (
            "return (pixels",
            "return pixels, (pixels",
            "data noise: ValueError: too many values to unpack (expected 2)",
        ),
    ],
)
def test_images_of_the_wrong_form_are_refused(
    extend: Extend, old: str, new: str, message: str
) -> None:
    extend(PARTS.replace(old, new))
    resolved = config("data=noise").data
    assert refusal(lambda: data.load(resolved)) == message


def test_files_under_the_root_are_part_of_the_identity(extend: Extend, tmp_path: Path) -> None:
    extend(
        PARTS.replace("noise(*, images=24)", "noise(root, *, images=24)").replace(
            "manual_seed(1)", "manual_seed(len(list(root.iterdir())))"
        )
    )
    assert refusal(lambda: config("data=noise")).startswith(
        "data.root=None is not a folder; name the one with the files of noise"
    )
    ids = []
    for text in ("a", "b"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "file").write_text(text)
        ids.append(cell_id(config("data=noise", f"data.root={tmp_path / text}")))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").write_text("a")
    assert cell_id(config("data=noise", f"data.root={tmp_path / 'c'}")) == ids[0] != ids[1]
    state = (tmp_path / "c" / "file").stat()
    (tmp_path / "c" / "file").write_text("b")
    os.utime(tmp_path / "c" / "file", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert cell_id(config("data=noise", f"data.root={tmp_path / 'c'}")) == ids[1]


def test_a_name_that_is_taken_twice_is_refused_with_both_places(extend: Extend) -> None:
    one, two = extend(NET), extend(NET)
    wanted = (
        f"is there more than once, in the file {one} and the file {two}; rename or remove "
        f"all but one"
    )
    assert (
        refusal(lambda: compose_and_resolve("backbone=mynet")) == f"backbone.family=mynet {wanted}"
    )
    assert cell_id(config()), "who does not ask for it is not disturbed"


@pytest.mark.parametrize(
    ("name", "override"), [("resnet8", "backbone=resnet8"), ("cifar_resnet", "backbone=resnet20")]
)
def test_a_name_of_our_own_cannot_be_taken(extend: Extend, name: str, override: str) -> None:
    """Neither that of a choice nor that of a family."""
    file = extend(NET.replace("mynet", name))
    message = refusal(lambda: compose_and_resolve(override))
    assert message.endswith(
        f"={name} is there more than once, in dks itself and the file {file}; rename or remove "
        f"all but one"
    )
    assert cell_id(config("backbone=wrn28_4"))


def test_a_choice_that_is_missed_may_be_in_a_file_that_cannot_be_read(extend: Extend) -> None:
    file = extend("def broken(:")
    message = refusal(lambda: compose_and_resolve("backbone=mynet"))
    assert message.startswith("backbone=mynet: no such choice; choose from densenet100_12, ")
    assert f"(the file {file} cannot be read: invalid syntax" in message


def test_a_variable_may_say_what_is_in_a_file(
    extend: Extend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose text does not show the name, and one of which only a part is wanted."""
    hidden = extend(NET.replace('"mynet"', '"my" + "net"'))
    parts = extend(PARTS)
    monkeypatch.setenv(VARIABLE, f"backbone.mynet={hidden}{os.pathsep}aux_design.probe={parts}")
    assert set(choices("data")) == set(own_choices("data"))
    found = config("backbone=mynet", "aux=probe")
    assert (found.backbone.family, found.aux_design.kind) == ("mynet@1", "probe@1")
    monkeypatch.setenv(VARIABLE, f"data.mynet={hidden}")
    assert "registers no such data; it registers backbone mynet" in refusal(
        lambda: compose_and_resolve("data=mynet")
    )


def test_what_fails_in_a_file_is_told_with_its_line(extend: Extend) -> None:
    extend(NET.replace("from torch import nn", "from nowhere import nn"))
    assert refusal(lambda: compose_and_resolve("backbone=mynet")).endswith("(extra.py, line 2)")


def test_a_file_that_is_not_there_is_a_warning_for_who_does_not_need_it(tmp_path: Path) -> None:
    given = {VARIABLE: "nowhere.py"}
    status, _, err = run_dks(tmp_path, "train", "--cfg", "job", **given)
    assert status == 0
    assert err.splitlines() == [
        f"warning: {VARIABLE}: there is no {tmp_path.resolve() / 'nowhere.py'}"
    ]


def test_jobs_of_slurm_find_the_same_files(extend: Extend, monkeypatch: pytest.MonkeyPatch) -> None:
    from dks.sweeps.launchers.slurm import _importable

    file = extend(NET)
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv(VARIABLE, f"backbone.mynet={file.name}{os.pathsep}../other")
    wanted = f"backbone.mynet={file}{os.pathsep}{file.parent.parent / 'other'}"
    assert f"export {VARIABLE}={wanted}" in _importable()
    monkeypatch.delenv(VARIABLE)
    assert not any(VARIABLE in line for line in _importable())


@pytest.mark.slow
def test_a_job_of_slurm_trains_an_extension(cluster: Any, in_folder: Path, extend: Extend) -> None:
    """Though the job inherits nothing of the environment."""
    file = extend(NET, PARTS)
    options = [
        "hydra/launcher=slurm",
        "+hydra.launcher.additional_parameters.export=NONE",
        "hydra.launcher.cpus_per_task=1",
    ]
    cells = [
        "-m",
        "backbone=mynet",
        "data=noise",
        "strategy=ring,bidir",
        "recipe.epochs=1",
        "tracking=off",
        "threads=1",
    ]
    status, _, err = run_dks(
        in_folder, "train", *cells, *options, **{VARIABLE: os.path.relpath(file, in_folder)}
    )
    assert status == 0, err

    def ended() -> bool:
        states = [
            json.loads(path.read_text())["status"]
            for path in (in_folder / "runs").glob("*/record.json")
        ]
        return len(states) == 2 and set(states) <= {"done", "failed"}

    cluster.until(ended, 200)
    records = [json.loads(path.read_text()) for path in (in_folder / "runs").glob("*/record.json")]
    assert [record["status"] for record in records] == ["done", "done"], records
    assert {each["file"] for record in records for each in record["attempts"][0]["extensions"]} == {
        str(file)
    }


def test_cells_without_extensions_are_those_of_earlier_versions() -> None:
    """Their ids as they would be without extensions.

    Other than those of schema version 1, for the identity leaves out more.
    """
    assert composed().config.backbone.options == {}
    known = {
        "": "057761b7995b",
        "method=baseline": "b731098335ec",
        "method=ds": "d7c4607ddfba",
        "aux=ap_conv_2fc strategy=topdown": "5de22525140f",
        "backbone=wrn28_10_dropout data=synthetic compute=fast seed=3": "8a35cacc1b97",
    }
    assert {overrides: cell_id(config(*overrides.split())) for overrides in known} == known
