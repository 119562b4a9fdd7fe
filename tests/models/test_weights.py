"""Weights from files.

Every form that is read, everything that is refused, and that nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dks
from dks.config.errors import RequestError
from dks.config.files import load_choice
from dks.config.schema import Backbone
from dks.models.weights import file_network, fingerprint, load_into, load_state_dict, run_network
from dks.runs.record import RunFolder, Status
from tests.conftest import finished_run, queued

RESNET8 = load_choice("backbone", "resnet8", Backbone)
STATE = {
    "w": torch.ones(1),
    "conv.weight": torch.arange(6.0).view(1, 2, 3),
    "bn.num_batches_tracked": torch.tensor(7),
    "fc.bias": torch.ones(2),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that is done."""
    return finished_run(tmp_path_factory.mktemp("finished"), "recipe.epochs=1")


def refusal(call: Callable[[], object]) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(RequestError) as refused:
        call()
    (line,) = refused.value.problems
    assert "\n" not in line
    return line


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


# --- what is read


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """The weights of a network as it names them itself."""
    torch.manual_seed(0)
    return dict(dks.build("resnet8", 10).strip().state_dict())


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """What a file gives to the network of `plain`, and what is told of it."""
    classes, network, told = file_network(RESNET8, "resnet8", path)
    assert classes == 10
    return dict(network.strip().state_dict()), told


def under(key: str | None, content: object) -> object:
    """The content in dicts inside each other, under keys with a dot between them, beside what
    scripts save with it.
    """
    for name in reversed(key.split(".") if key else []):
        optimizer = {
            "state": {0: {"momentum_buffer": torch.ones(2)}},
            "param_groups": [{"lr": 0.1}],
        }
        content = {
            "epoch": 3,
            "best": np.float64(93.5),
            "optimizer": optimizer,
            name: content,
            "arch": None,
        }
    return content


KEYS = [
    None,
    "state_dict",
    "model",
    "network",
    "net",
    "model_state_dict",
    "whatever",
    "checkpoint.model",
]
PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "net.",
    "model.module.",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("prefix", "zipped"), [("", True), ("module.", False)])
def test_files_of_torch_are_read_in_every_form(
    tmp_path: Path, plain: dict[str, Tensor], key: str | None, prefix: str, zipped: bool
) -> None:
    path = tmp_path / "any.name"
    content = under(key, {prefix + name: value for name, value in plain.items()})
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    state, told = read(path)
    assert same(state, plain)
    said = [f"under {key}"] * (key is not None) + [f"without the prefix {prefix}"] * (prefix != "")
    assert told == (f"weights from {path}: {', '.join(said)}" if said else "")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_before_the_names_is_known_by_the_networks_own(
    tmp_path: Path, plain: dict[str, Tensor], prefix: str
) -> None:
    path = tmp_path / "some.pt"
    torch.save({prefix + name: value for name, value in plain.items()}, path)
    state, told = read(path)
    assert same(state, plain)
    assert told == (f"weights from {path}: without the prefix {prefix}" if prefix else "")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_known_by_their_name_and_by_their_content(
    tmp_path: Path, plain: dict[str, Tensor], name: str
) -> None:
    save_file({f"module.{key}": value for key, value in plain.items()}, tmp_path / name)
    assert same(read(tmp_path / name)[0], plain)


def test_the_prefix_of_a_network_is_its_own(tmp_path: Path) -> None:
    """Names that begin like those of a wrapper are left alone where the network has them."""
    state = {"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}
    torch.save(state, tmp_path / "own.pt")
    found = load_state_dict(tmp_path / "own.pt", state)
    assert same(found.state, state)
    assert found.told == ""


def test_what_another_module_of_a_script_has_is_left_out_and_said(
    tmp_path: Path, plain: dict[str, Tensor]
) -> None:
    """A Lightning checkpoint: the network is one part of what was trained.

    And torch's AveragedModel, which counts.
    """
    path = tmp_path / "last.ckpt"
    state = {f"model.{name}": value for name, value in plain.items()}
    state |= {"criterion.weight": torch.ones(3), "train_acc.tp": torch.tensor(1)}
    torch.save(
        {
            "epoch": 3,
            "global_step": 70,
            "pytorch-lightning_version": "2.2",
            "state_dict": state,
            "loops": {},
        },
        path,
    )
    found, told = read(path)
    assert same(found, plain)
    assert told.endswith(
        "under state_dict, without the prefix model., criterion.weight, train_acc.tp left out"
    )
    network = dks.build("resnet8", 10).strip()
    network.load_state_dict(plain)
    torch.save(torch.optim.swa_utils.AveragedModel(network).state_dict(), path)
    found, told = read(path)
    assert same(found, plain)
    assert told.endswith("without the prefix module., n_averaged left out")


def test_numbers_of_numpy_and_counters_beside_the_tensors_are_left_alone(
    tmp_path: Path, plain: dict[str, Tensor]
) -> None:
    beside = {
        "epoch": 3,
        "acc": np.float32(93.5),
        "step": np.int64(7),
        "done": np.bool_(True),
        "history": np.linspace(0, 1, 5),
        "args": argparse.Namespace(lr=0.1, arch="resnet8"),
        "name": "resnet8",
        "scheduler": {"last_epoch": 3, "_last_lr": [0.1]},
    }
    torch.save({"net": plain, **beside}, tmp_path / "nested.pt")
    torch.save({**plain, **beside}, tmp_path / "flat.pt")
    torch.save({"net": plain, **beside}, old := io.BytesIO(), _use_new_zipfile_serialization=False)
    # as in files of NumPy 1
    (tmp_path / "old.pt").write_bytes(old.getvalue().replace(b"numpy._core.", b"numpy.core."))
    for name in ("nested.pt", "flat.pt", "old.pt"):
        assert same(read(tmp_path / name)[0], plain)


@pytest.mark.parametrize(
    ("first", "second", "taken", "left"),
    [
        ("state_dict_ema", "state_dict", "under state_dict", "state_dict_ema left out"),
        ("model", "model_ema", "under model", "model_ema left out"),
        ("net.", "EMA_net.", "without the prefix net.", "EMA_net.stem.conv.weight, "),
        ("", "ema.", "", "ema.stem.conv.weight, "),
    ],
)
def test_of_plain_and_averaged_weights_the_plain_ones_are_taken_and_it_is_said(
    tmp_path: Path, plain: dict[str, Tensor], first: str, second: str, taken: str, left: str
) -> None:
    path, content = tmp_path / "both.pt", dict[str, Any]()
    for name in (first, second):
        values = {key: value + ("ema" in name.lower()) for key, value in plain.items()}
        if "." in f"{first}{second}":
            content |= {f"{name}{key}": value for key, value in values.items()}
        else:
            content[name] = values
    torch.save(content, path)
    found, told = read(path)
    assert same(found, plain)
    assert told.startswith(f"weights from {path}: {taken}")
    assert left in told


def test_averaged_weights_alone_are_taken(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    torch.save({"model_ema": plain}, tmp_path / "ema.pt")
    assert read(tmp_path / "ema.pt")[1].endswith(": under model_ema")


@pytest.mark.parametrize(
    ("keys", "sets"),
    [
        (("student", "teacher"), "student, teacher"),
        (("first.net", "last.net"), "first.net, last.net"),
    ],
)
def test_two_sets_of_weights_are_refused_with_their_names(
    tmp_path: Path, plain: dict[str, Tensor], keys: tuple[str, str], sets: str
) -> None:
    content: dict[str, Any] = {}
    for key in keys:
        content |= under(key, {name: value.clone() for name, value in plain.items()})  # type: ignore[operator]
    torch.save(content, tmp_path / "two.pt")
    assert refusal(lambda: read(tmp_path / "two.pt")) == (
        f"{tmp_path / 'two.pt'} holds the weights of this network several times: {sets}; save "
        f"the ones you mean alone"
    )


def test_the_weights_of_a_run_are_a_file_too(finished: RunFolder) -> None:
    state, told = read(finished.weights_file)
    assert same(
        dict(sorted(state.items())),
        dict(sorted(strip_prefix(load_file(finished.weights_file)).items())),
    )
    assert "without the prefix backbone., branches.c2." in told


def strip_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("backbone."): value
        for name, value in state.items()
        if name.startswith("backbone.")
    }


def test_parameters_come_without_gradients(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "parameters.pt")
    assert not any(
        value.requires_grad
        for value in load_state_dict(tmp_path / "parameters.pt", ["weight"]).state.values()
    )


# --- what is refused


class Trap:
    """Runs a command as soon as it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["trap.pt", "trap.safetensors"])
@pytest.mark.parametrize("how", ["bare", "zipped", "legacy", "beside weights"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, how: str, name: str) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / name
    trap = Trap(f"touch {sprung}")
    if how == "bare":
        path.write_bytes(pickle.dumps(trap))
    else:
        content = {"state_dict": STATE, "epoch": trap} if how == "beside weights" else {"w": trap}
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    line = refusal(lambda: load_state_dict(path, STATE))
    assert line.startswith(str(path))
    if name == "trap.pt" and how != "bare":
        assert (
            f"holds the Python object {os.system.__module__}.system, which is not loaded because "
            f"it could run code" in line
        )
    assert not sprung.exists()
    # The trap does work on whoever trusts the file.
    trusted = path.rename(tmp_path / "trusted")
    pickle.loads(trusted.read_bytes()) if how == "bare" else torch.load(trusted, weights_only=False)
    assert sprung.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    line = refusal(lambda: load_state_dict(tmp_path / "module.pt", STATE))
    assert "torch.nn.modules.linear.Linear" in line
    assert "save the network's state_dict() instead" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"network": {"w": [1.0, 2.0]}}, "holds no tensors under names"),
        ({"w": np.ones(3)}, "holds no tensors under names"),
        ({0: torch.ones(1)}, "holds no tensors under names"),
        ({"w": torch.ones(3, device="meta")}, "w has no plain numbers"),
        ({"w": torch.eye(3).to_sparse()}, "w has no plain numbers"),
    ],
)
def test_anything_but_tensors_under_names_is_refused(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "content.pt"
    torch.save(content, path)
    line = refusal(lambda: load_state_dict(path, STATE))
    assert line.startswith(str(path))
    assert message in line


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("form", ["zipped", "legacy", "safetensors"])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, form: str, kept: float) -> None:
    path = tmp_path / "cut"
    if form == "safetensors":
        save_file({"w": torch.ones(1000)}, path)
    else:
        torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=form == "zipped")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert refusal(lambda: load_state_dict(path, STATE)).startswith(
        f"{path} is cut off, damaged, or no file of weights"
    )


@pytest.mark.parametrize("name", ["notes.pt", "notes.safetensors"])
@pytest.mark.parametrize(
    "content", [b"a text that is no checkpoint", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(64)]
)
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(lambda: load_state_dict(tmp_path / name, STATE)).startswith(
        f"{tmp_path / name} is cut off, damaged, or no file"
    )


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.pt", "w") as archive:
        archive.writestr("a/data.txt", "text")
    assert "no file of weights" in refusal(lambda: load_state_dict(tmp_path / "some.pt", STATE))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for call in (lambda path: load_state_dict(path, STATE), fingerprint):
        assert (
            refusal(lambda call=call: call(tmp_path / "no.pt"))
            == f"{tmp_path / 'no.pt'} cannot be read: No such file or directory"
        )
        assert (
            refusal(lambda call=call: call(tmp_path))
            == f"{tmp_path} cannot be read: it is a folder where a file should be"
        )


# --- into a network


def test_weights_that_do_not_fit_are_refused_in_one_line_and_the_network_stays_as_it_was() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: torch.full_like(value, 9) for name, value in before.items()}
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        del state[name]
    state |= {
        "more": torch.ones(1),
        "3.weight": torch.ones(5, 4),
        "3.bias": torch.ones(2, dtype=torch.int64),
    }
    assert refusal(lambda: load_into(network, state, "some.pt")) == (
        "some.pt does not fit the network: missing 0.weight, 0.bias, 2.weight and 1 more; "
        "unexpected more; "
        "3.weight is (5, 4) of float32 where the network has (2, 4) of float32, "
        "3.bias is (2,) of int64 where the network has (2,) of float32"
    )
    assert same(dict(network.state_dict()), before)


def test_half_precision_fits_and_a_file_older_than_the_counters_of_batch_normalisation_too() -> (
    None
):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {
        name: torch.full_like(value, 0.5).half()
        for name, value in network.state_dict().items()
        if "num" not in name
    }
    load_into(network, state, "old.pt")
    assert all(bool((value == 0.5).all()) for value in network.state_dict().values() if value.ndim)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"weights")
    other.write_bytes(b"weightz")
    assert fingerprint(one) == hashlib.sha256(b"weights").hexdigest()[:16] != fingerprint(other)


# --- networks of runs and of files


def test_a_finished_run_gives_its_network_with_its_weights(finished: RunFolder) -> None:
    before = torch.get_rng_state()
    config, network = run_network(finished.path.parent, finished.cell_id)
    assert torch.equal(torch.get_rng_state(), before)
    assert config == finished.read_config()
    assert network.classifiers == ("c1", "c2", "c3")
    weights = load_file(finished.weights_file)
    assert set(network.state_dict()) == set(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_activation_checkpointing_leaves_nothing_in_the_network_of_a_run(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "backbone.activation_checkpointing=true", "recipe.epochs=1")
    _, network = run_network(folder.path.parent, folder.cell_id)
    assert not [module for module in network.modules() if "forward" in vars(module)]


def test_a_run_that_is_not_done_is_refused_with_its_state(
    tmp_path: Path, finished: RunFolder
) -> None:
    runs = tmp_path / "runs"
    assert (
        refusal(lambda: run_network(runs, "0123456789ab"))
        == f"there is no run 0123456789ab in {runs}"
    )
    folder = queued(tmp_path)
    states = {
        Status.queued: "missing",
        Status.failed: "failed",
        Status.killed: "killed",
        Status.running: "killed",
    }
    for status, state in states.items():
        record = folder.read_record()
        assert record is not None
        record.status = status
        folder.write_record(record)
        line = refusal(lambda: run_network(runs, folder.cell_id))
        assert (
            line
            == f"run {folder.cell_id} in {runs} is {state}, not done: it has no trained weights yet"
        )


def test_a_run_with_damaged_weights_is_refused(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "recipe.epochs=1")
    weights = load_file(folder.weights_file)
    del weights["backbone.head.fc.weight"]
    save_file(weights, folder.weights_file)
    line = refusal(lambda: run_network(folder.path.parent, folder.cell_id))
    assert (
        line == f"{folder.weights_file} does not fit the network: missing backbone.head.fc.weight"
    )
    folder.weights_file.unlink()
    assert "cannot be read" in refusal(lambda: run_network(folder.path.parent, folder.cell_id))


@pytest.mark.parametrize("backbone", ["resnet8", "resnet18"])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_the_number_of_classes_is_read_from_the_file(
    tmp_path: Path, backbone: str, form: str
) -> None:
    state, path = dks.build(backbone, 13).strip().state_dict(), tmp_path / form
    torch.save(state, path) if form == "torch" else save_file(state, path)
    classes, network, _ = file_network(load_choice("backbone", backbone, Backbone), backbone, path)
    assert (classes, network.classifiers) == (13, ("c1",))
    assert same(dict(network.strip().state_dict()), dict(state))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_another_network_are_refused(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "resnet20.pt"
    torch.save(
        {
            prefix + name: value
            for name, value in dks.build("resnet20", 10).strip().state_dict().items()
        },
        path,
    )
    line = refusal(lambda: file_network(RESNET8, "resnet8", path))
    assert line.startswith(
        f"{path} as backbone=resnet8 does not fit the network: unexpected stage1.1.conv1.weight, "
        f"stage1.1.bn1."
    )
    assert re.search(r" and \d+ more$", line)
    torch.save({"w": torch.ones(2)}, path)
    line = refusal(lambda: file_network(RESNET8, "resnet8", path))
    assert (
        "missing stem.conv.weight, stem.bn.weight, stem.bn.bias and" in line
        and "unexpected w" in line
    )
