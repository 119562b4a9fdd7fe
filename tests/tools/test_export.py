"""The exported network.

What every format holds when others load it, and that nothing is ever half written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import dks
from dks import data
from dks.cli.main import main
from dks.config.files import load_choice
from dks.config.schema import Backbone
from dks.data.holdout import hold_out
from dks.models.weights import file_network, run_network
from dks.runs.record import RunFolder
from dks.tools import export
from dks.tools.export import Format
from tests.conftest import finished_run, queued

Dks = Callable[..., tuple[int, str, str]]
SUFFIX = {"safetensors": "safetensors", "onnx": "onnx", "program": "pt2"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the whole method: two branches, bidirectional synergy."""
    return finished_run(tmp_path_factory.mktemp("finished"), "threads=1")


@pytest.fixture
def dks_export(in_folder: Path, finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> Dks:
    """`dks export ARGUMENTS` on the runs of `finished`: exit status, output, errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["export", *arguments, "--runs-dir", str(finished.path.parent)])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def c1(finished: RunFolder, images: Tensor) -> Tensor:
    """The logits of c1 of the network with its branches, put together here from the weights of the
    run.
    """
    network = dks.build("resnet8", 10, "ours", ("c2", "c3")).eval()
    network.load_state_dict(load_file(finished.weights_file))
    with torch.no_grad():
        return network(images)["c1"]


# --- the formats, each loaded by what its users have


def test_safetensors_fit_the_plain_backbone(
    finished: RunFolder, dks_export: Dks, images: Tensor, c1: Tensor
) -> None:
    path = f"{finished.cell_id}.safetensors"
    assert dks_export(finished.cell_id, "--format", "safetensors") == (
        0,
        f"written to {path}\n",
        "",
    )
    plain = dks.build("resnet8", 10).strip().eval()
    plain.load_state_dict(load_file(path), strict=True)
    with torch.no_grad():
        assert torch.equal(plain(images), c1)
    # It can be used as a checkpoint of this project, too.
    classes, network, _ = file_network(
        load_choice("backbone", "resnet8", Backbone), "resnet8", path
    )
    assert classes == 10
    with torch.no_grad():
        assert torch.equal(network.eval()(images)["c1"], c1)


@pytest.mark.slow
def test_onnx_runs_in_onnx_runtime_with_any_batch_size(
    finished: RunFolder, dks_export: Dks, images: Tensor, c1: Tensor
) -> None:
    path = f"{finished.cell_id}.onnx"
    assert dks_export(finished.cell_id, "--format", "onnx") == (0, f"written to {path}\n", "")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 8, 8])
    assert (got.name, got.shape[1:]) == ("logits", [10])
    assert isinstance(given.shape[0], str) and given.shape[0] == got.shape[0]
    for count in (1, 2, 5):
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(logits, c1[:count].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_program_runs_with_any_batch_size(
    finished: RunFolder, dks_export: Dks, images: Tensor, c1: Tensor
) -> None:
    path = f"{finished.cell_id}.pt2"
    assert dks_export(finished.cell_id, "--format", "program") == (0, f"written to {path}\n", "")
    network = torch.export.load(path).module()
    for count in (1, 2, 5):
        torch.testing.assert_close(network(images[:count]), c1[:count], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_every_format_says_what_a_user_has_to_know(finished: RunFolder, dks_export: Dks) -> None:
    for form in Format:
        assert dks_export(finished.cell_id, "--format", form.value)[0] == 0
    with safe_open(f"{finished.cell_id}.safetensors", "pt") as file:
        metadata = file.metadata()
    values = {key: json.loads(value) for key, value in metadata.items()}
    train, _ = data.load(finished.read_config().data)
    pixels = train.images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert set(values) == {"cell_id", "backbone", "num_classes", "mean", "std"}
    assert (values["cell_id"], values["backbone"], values["num_classes"]) == (
        finished.cell_id,
        "resnet8",
        10,
    )
    assert values["mean"] == pytest.approx(pixels.mean(axis=1))
    assert values["std"] == pytest.approx(pixels.std(axis=1))
    stored = {item.key: item.value for item in onnx.load(f"{finished.cell_id}.onnx").metadata_props}
    assert stored.items() >= metadata.items()
    extra = {"metadata.json": ""}
    torch.export.load(f"{finished.cell_id}.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == metadata


def test_the_constants_of_a_run_that_held_images_out_are_those_that_it_was_trained_with(
    tmp_path: Path, in_folder: Path
) -> None:
    """Of the images that it saw, not of the held-out ones beside them."""
    folder = finished_run(tmp_path, "data.holdout=40", "recipe.epochs=1", "method=baseline")
    path = export.export(str(folder.path.parent), folder.cell_id, Format.safetensors)
    with safe_open(path, "pt") as file:
        found = {key: json.loads(value) for key, value in file.metadata().items()}
    config = folder.read_config()
    kept, held_out = hold_out(data.load(config.data)[0], 40, config.seed)
    assert held_out is not None and (len(kept), len(held_out)) == (24, 40)
    pixels = kept.images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert found["mean"] == pytest.approx(pixels.mean(axis=1), rel=1e-9)
    assert found["std"] == pytest.approx(pixels.std(axis=1), rel=1e-6)


# --- nothing of the branches is left


def test_the_stripped_network_is_the_baseline(finished: RunFolder, images: Tensor) -> None:
    """Parameters, floating-point operations and the graph of the forward pass."""
    trained = run_network(finished.path.parent, finished.cell_id)[1].strip().eval()
    plain = dks.build("resnet8", 10).strip().eval()
    whole = dks.build("resnet8", 10, "ours", ("c2", "c3")).eval()

    def parameters(network: nn.Module) -> int:
        return sum(value.numel() for value in network.parameters())

    def operations(network: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images)
        return counter.get_total_flops()

    def program(network: nn.Module) -> str:
        return str(torch.export.export(network, (images,)).graph)

    assert parameters(trained) == parameters(plain) < parameters(whole)
    assert operations(trained) == operations(plain) < operations(whole)
    assert str(fx.symbolic_trace(trained).graph) == str(fx.symbolic_trace(plain).graph)
    assert program(trained) == program(plain) != program(whole)
    assert list(trained.state_dict()) == list(plain.state_dict())


def test_the_exported_program_is_the_baselines(
    finished: RunFolder, dks_export: Dks, images: Tensor
) -> None:
    dks_export(finished.cell_id, "--format", "program")
    batch = ({0: torch.export.Dim("batch")},)
    plain = torch.export.export(
        dks.build("resnet8", 10).strip().eval(), (images[:2],), dynamic_shapes=batch
    )
    found = torch.export.load(f"{finished.cell_id}.pt2")
    assert str(found.graph) == str(plain.graph)
    assert set(found.state_dict) == set(plain.state_dict)


@pytest.mark.slow
@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    "overrides", [("method=single", "positions=c3"), ("backbone.activation_checkpointing=true",)]
)
def test_other_runs_are_exported_as_well(
    tmp_path: Path, in_folder: Path, overrides: tuple[str, ...]
) -> None:
    run = finished_run(tmp_path, *overrides, "recipe.epochs=1", "threads=1")
    for form in Format:
        assert export.export(str(tmp_path / "runs"), run.cell_id, form).is_file()


@pytest.mark.slow
def test_the_size_of_the_images_is_that_of_the_data(tmp_path: Path, in_folder: Path) -> None:
    """Where the configuration names none.

    And a mean and a standard deviation that it names are those in the file.
    """
    nothing = (
        f"data.{key}=null" for key in ("image_size", "num_classes", "train_images", "test_images")
    )
    named = ("data.mean=[0.1,0.2,0.3]", "recipe.std=[0.4,0.5,0.6]")
    run = finished_run(
        tmp_path,
        "data.source=digits",
        *nothing,
        *named,
        "method=baseline",
        "recipe.epochs=1",
        "threads=1",
    )
    path = export.export(str(tmp_path / "runs"), run.cell_id, Format.onnx, "digits.onnx")
    (given,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()
    assert given.shape[1:] == [3, 8, 8]
    stored = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert (stored["mean"], stored["std"]) == ("[0.1, 0.2, 0.3]", "[0.4, 0.5, 0.6]")


# --- files


@pytest.mark.parametrize(
    "form",
    ["safetensors", *(pytest.param(each, marks=pytest.mark.slow) for each in ("onnx", "program"))],
)
def test_an_existing_file_is_replaced_only_with_force(
    finished: RunFolder, dks_export: Dks, form: str, in_folder: Path
) -> None:
    path = in_folder / f"mine.{SUFFIX[form]}"
    path.write_text("precious")
    status, out, err = dks_export(finished.cell_id, "--format", form, "--output", path.name)
    assert (status, out, err) == (
        2,
        "",
        f"error: {path.name} exists; give another --output, or --force to replace it\n",
    )
    assert path.read_text() == "precious"
    assert dks_export(finished.cell_id, "--format", form, "--output", path.name, "--force")[0] == 0
    assert path.stat().st_size > 10_000
    assert list(in_folder.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_left_alone(
    finished: RunFolder, dks_export: Dks, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export.WRITERS[Format.safetensors]

    def slow(*arguments: Any) -> Any:
        (in_folder / "mine.safetensors").write_text("precious")
        return write(*arguments)

    monkeypatch.setitem(export.WRITERS, Format.safetensors, slow)
    assert (
        dks_export(finished.cell_id, "--format", "safetensors", "--output", "mine.safetensors")[0]
        == 2
    )
    assert [(path.name, path.read_text()) for path in in_folder.iterdir()] == [
        ("mine.safetensors", "precious")
    ]


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_file_that_computes_something_else_is_not_kept(
    finished: RunFolder,
    dks_export: Dks,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: float,
) -> None:
    write = export.WRITERS[Format.safetensors]

    def off(*arguments: Any) -> Any:
        network = write(*arguments)
        return lambda batch: network(batch) + wrong

    monkeypatch.setitem(export.WRITERS, Format.safetensors, off)
    (in_folder / "old.safetensors").write_text("old")
    status, _, err = dks_export(
        finished.cell_id, "--format", "safetensors", "--output", "old.safetensors", "--force"
    )
    assert status == 1
    assert "old.safetensors was not written: what it computes differs from the network by" in err
    assert [(path.name, path.read_text()) for path in in_folder.iterdir()] == [
        ("old.safetensors", "old")
    ]


def test_nothing_is_left_of_an_interrupted_export(
    finished: RunFolder, dks_export: Dks, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(config: Any, network: Any, images: Any, metadata: Any, draft: Path) -> Any:
        draft.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(export.WRITERS, Format.onnx, half)
    assert dks_export(finished.cell_id, "--format", "onnx")[0] == 130
    assert not list(in_folder.iterdir())


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_packages_for_onnx_it_says_how_to_install_them(
    finished: RunFolder,
    dks_export: Dks,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = dks_export(finished.cell_id, "--format", "onnx")
    assert (status, err) == (
        2,
        f'error: --format onnx needs the package {package}: pip install "dks[export]"\n',
    )
    assert dks_export(finished.cell_id, "--format", "program")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("0123456789ab --format program", "there is no run 0123456789ab in "),
        (
            "CELL --format onnx --output net.pt2",
            "--output net.pt2: a file of --format onnx ends in .onnx",
        ),
        ("CELL --format onnx --output no/net.onnx", "--output no/net.onnx: there is no folder no"),
        (
            "CELL --format safetensors --output folder.safetensors --force",
            "folder.safetensors is a folder; name a file",
        ),
    ],
)
def test_requests_that_are_wrong_are_one_line(
    finished: RunFolder, dks_export: Dks, in_folder: Path, arguments: str, message: str
) -> None:
    (in_folder / "folder.safetensors").mkdir()
    status, out, err = dks_export(*arguments.replace("CELL", finished.cell_id).split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in in_folder.iterdir()] == ["folder.safetensors"]


def test_a_run_that_is_not_done_is_not_exported(
    dks_export: Dks, finished: RunFolder, in_folder: Path
) -> None:
    waiting = queued(finished.path.parent.parent, "seed=7")
    status, _, err = dks_export(waiting.cell_id, "--format", "program")
    assert status == 2
    assert f"run {waiting.cell_id} in {finished.path.parent} is missing, not done" in err
    assert not list(in_folder.iterdir())
