"""Weights from files: every form that is read, everything that is refused, and that nothing in a file is executed."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import finished_run, queued
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dks
from dks.config.errors import RequestError
from dks.tracking.record import RunFolder, Status
from dks.weights import WRAPPERS, file_network, fingerprint, load_into, load_state_dict, run_network

STATE = {"conv.weight": torch.arange(6.0).view(1, 2, 3), "bn.num_batches_tracked": torch.tensor(7), "fc.bias": torch.ones(2)}


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
    return list(found) == list(expected) and all(torch.equal(found[name], value) for name, value in expected.items())


# --- what is read


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read_in_every_form(tmp_path: Path, wrapper: str | None, prefix: str, zipped: bool) -> None:
    state: dict[str, Any] = {prefix + name: value for name, value in STATE.items()}
    content = state if wrapper is None else {"epoch": 3, wrapper: state, "optimizer": {"lr": 0.1}, "arch": "resnet18"}
    torch.save(content, tmp_path / "any.name", _use_new_zipfile_serialization=zipped)
    assert same(load_state_dict(tmp_path / "any.name"), STATE)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_known_by_their_name_and_by_their_content(tmp_path: Path, name: str) -> None:
    save_file({f"module.{key}": value for key, value in STATE.items()}, tmp_path / name)
    found = load_state_dict(tmp_path / name)
    assert same(dict(sorted(found.items())), dict(sorted(STATE.items())))


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(mixed, tmp_path / "mixed.pt")
    assert same(load_state_dict(tmp_path / "mixed.pt"), mixed)


def test_parameters_come_without_gradients(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "parameters.pt")
    assert not any(value.requires_grad for value in load_state_dict(tmp_path / "parameters.pt").values())


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
    line = refusal(lambda: load_state_dict(path))
    assert line.startswith(str(path))
    if name == "trap.pt" and how != "bare":
        assert f"holds the Python object {os.system.__module__}.system, which is not loaded because it could run code" in line
    assert not sprung.exists()
    # The trap does work on whoever trusts the file.
    trusted = path.rename(tmp_path / "trusted")
    pickle.loads(trusted.read_bytes()) if how == "bare" else torch.load(trusted, weights_only=False)
    assert sprung.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    line = refusal(lambda: load_state_dict(tmp_path / "module.pt"))
    assert "torch.nn.modules.linear.Linear" in line
    assert "save the network's state_dict() instead" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"w": torch.ones(1), "epoch": 3}, "epoch is a int, not a tensor"),
        ({"network": {"w": [1.0, 2.0]}}, "w is a list, not a tensor"),
        ({0: torch.ones(1)}, "it has the key 0, not a name"),
        ({"w": torch.ones(3, device="meta")}, "w has no plain numbers"),
        ({"w": torch.eye(3).to_sparse()}, "w has no plain numbers"),
    ],
)
def test_anything_but_tensors_under_names_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "content.pt"
    torch.save(content, path)
    line = refusal(lambda: load_state_dict(path))
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
    assert refusal(lambda: load_state_dict(path)).startswith(f"{path} is cut off, damaged, or no file of weights")


@pytest.mark.parametrize("name", ["notes.pt", "notes.safetensors"])
@pytest.mark.parametrize("content", [b"a text that is no checkpoint", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(64)])
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(lambda: load_state_dict(tmp_path / name)).startswith(f"{tmp_path / name} is cut off, damaged, or no file")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.pt", "w") as archive:
        archive.writestr("a/data.txt", "text")
    assert "no file of weights" in refusal(lambda: load_state_dict(tmp_path / "some.pt"))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for call in (load_state_dict, fingerprint):
        assert (
            refusal(lambda call=call: call(tmp_path / "no.pt"))
            == f"{tmp_path / 'no.pt'} cannot be read: No such file or directory"
        )
        assert refusal(lambda call=call: call(tmp_path)) == f"{tmp_path} cannot be read: Is a directory"


# --- into a network


def test_weights_that_do_not_fit_are_refused_in_one_line_and_the_network_stays_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: torch.full_like(value, 9) for name, value in before.items()}
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        del state[name]
    state |= {"more": torch.ones(1), "3.weight": torch.ones(5, 4), "3.bias": torch.ones(2, dtype=torch.int64)}
    assert refusal(lambda: load_into(network, state, "some.pt")) == (
        "some.pt does not fit the network: missing 0.weight, 0.bias, 2.weight and 1 more; unexpected more; "
        "3.weight is (5, 4) of float32 where the network has (2, 4) of float32, "
        "3.bias is (2,) of int64 where the network has (2,) of float32"
    )
    assert same(dict(network.state_dict()), before)


def test_half_precision_fits_and_a_file_older_than_the_counters_of_batch_normalisation_too() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {name: torch.full_like(value, 0.5).half() for name, value in network.state_dict().items() if "num" not in name}
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


def test_a_run_that_is_not_done_is_refused_with_its_state(tmp_path: Path, finished: RunFolder) -> None:
    runs = tmp_path / "runs"
    assert refusal(lambda: run_network(runs, "0123456789ab")) == f"there is no run 0123456789ab in {runs}"
    folder = queued(tmp_path)
    states = {Status.queued: "missing", Status.failed: "failed", Status.killed: "killed", Status.running: "killed"}
    for status, state in states.items():
        record = folder.read_record()
        assert record is not None
        record.status = status
        folder.write_record(record)
        line = refusal(lambda: run_network(runs, folder.cell_id))
        assert line == f"run {folder.cell_id} in {runs} is {state}, not done: it has no trained weights yet"


def test_a_run_with_damaged_weights_is_refused(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "recipe.epochs=1")
    weights = load_file(folder.weights_file)
    del weights["backbone.head.fc.weight"]
    save_file(weights, folder.weights_file)
    line = refusal(lambda: run_network(folder.path.parent, folder.cell_id))
    assert line == f"{folder.weights_file} does not fit the network: missing backbone.head.fc.weight"
    folder.weights_file.unlink()
    assert "cannot be read" in refusal(lambda: run_network(folder.path.parent, folder.cell_id))


@pytest.mark.parametrize("backbone", ["resnet8", "resnet18"])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_the_number_of_classes_is_read_from_the_file(tmp_path: Path, backbone: str, form: str) -> None:
    state, path = dks.build(backbone, 13).strip().state_dict(), tmp_path / form
    torch.save(state, path) if form == "torch" else save_file(state, path)
    classes, network = file_network(backbone, path)
    assert (classes, network.classifiers) == (13, ("c1",))
    assert same(dict(network.strip().state_dict()), dict(state))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet20.pt"
    torch.save(dks.build("resnet20", 10).strip().state_dict(), path)
    line = refusal(lambda: file_network("resnet8", path))
    assert line.startswith(
        f"{path} as backbone=resnet8 does not fit the network: unexpected stage1.1.conv1.weight, stage1.1.bn1."
    )
    assert re.search(r" and \d+ more$", line)
    torch.save({"w": torch.ones(2)}, path)
    assert "missing stem.conv.weight, stem.bn.weight, stem.bn.bias and" in refusal(lambda: file_network("resnet8", path))
    assert "backbone=resnet19: no such choice" in refusal(lambda: file_network("resnet19", path))
