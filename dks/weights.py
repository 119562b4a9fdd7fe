"""Trained weights from files: read without running anything in them, checked, and put into networks."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.extensions import require
from dks.config.files import load_choice
from dks.config.reading import check_size, open_file
from dks.config.schema import Backbone, Config, Data
from dks.ledger.states import finished_run
from dks.machine.memory import free_memory
from dks.models import build_network
from dks.models.network import SupervisedNetwork
from dks.terminal import explain
from dks.tracking import damage

WRAPPERS = ("state_dict", "model", "network")  # where training scripts put the state dict beside other things
COUNTER = (
    "num_batches_tracked"  # of batch normalisation; files from before PyTorch 0.4.1 have none, and no result depends on it
)
NAMED = 3  # how many wrong keys a message names


def load_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a file of safetensors or `torch.save`, on the CPU.

    The dict may lie under one of `WRAPPERS`; the prefix `module.` of `DataParallel` is removed if every key has it.

    Raises:
        RequestError: the file cannot be read, or holds anything but tensors under names. Nothing in it was executed.
    """
    with _opened(path) as file:
        head = file.read(9)
    state = _content(Path(path), head)
    if isinstance(state, dict):
        state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict):
        raise RequestError(f"{path} holds a {type(state).__name__}, not a state dict: tensors under their names")
    if not state:
        raise RequestError(f"{path} holds no tensors")
    for key, value in state.items():
        if not isinstance(key, str):
            raise RequestError(f"{path} is no state dict: it has the key {key!r}, not a name")
        if not isinstance(value, Tensor):
            raise RequestError(f"{path} is no state dict: {key} is a {type(value).__name__}, not a tensor")
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise RequestError(f"{path}: {key} has no plain numbers (layout {value.layout}, {value.dtype}, {value.device})")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in state.items()}


def load_into(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Give a network these weights, all of them and nothing else; on an error it keeps its own.

    Args:
        what: where they come from, for the message.

    Raises:
        RequestError: names are missing or unexpected, or shapes differ; one line that names the first few.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(COUNTER)]
    unexpected = [name for name in state if name not in own]
    ill = [
        f"{name} is {_form(state[name])} where the network has {_form(value)}"
        for name, value in own.items()
        if name in state and (state[name].shape != value.shape or value.is_floating_point() > state[name].is_floating_point())
    ]
    problems = [f"{kind} {_few(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if ill:
        problems.append(_few(ill))
    if problems:
        raise RequestError(f"{what} does not fit the network: {'; '.join(problems)}")
    network.load_state_dict(dict(state))  # a plain dict says no version, so that torch fills missing counters in


def fingerprint(path: Path | str) -> str:
    """16 hex digits of the SHA-256 of a file's content.

    Raises:
        RequestError: it cannot be read.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def run_network(runs_dir: Path | str, cell_id: str) -> tuple[Config, SupervisedNetwork]:
    """The configuration of a finished run, and its network with the trained weights, branches included, on the CPU.

    Raises:
        RequestError: there is no such run, it is not done, or its files are damaged.
    """
    folder, record = finished_run(runs_dir, cell_id)
    config = folder.read_config()
    for file in require(config, [each for attempt in record.attempts for each in attempt.extensions]):
        damage.report(file, f"is not what run {cell_id} was trained with, though its version is the same")
    config.backbone.activation_checkpointing = False  # of use in training only
    network = _unset(config)
    load_into(network, load_state_dict(folder.weights_file), str(folder.weights_file))
    explain(f"weights of {record.label or 'the default configuration'} from {folder.weights_file}")
    return config, network


def file_network(backbone: str, path: Path | str) -> tuple[int, SupervisedNetwork]:
    """The plain network whose weights are in a file, on the CPU, and how many classes its classifier has.

    Args:
        backbone: a choice of the group `backbone`, for example "resnet18".

    Raises:
        RequestError: there is no such backbone, or the file does not hold its weights.
    """
    spec, state = load_choice("backbone", backbone, Backbone), load_state_dict(path)
    # The classifier's tensors are those whose shape depends on the number of classes.
    with torch.device("meta"):
        one, two = (_unset(_plain(spec, count)).backbone.state_dict() for count in (1, 2))
    sizes = [len(state[name]) for name in one if one[name].shape != two[name].shape and name in state and state[name].ndim]
    num_classes = max(sizes, default=1)
    network = _unset(_plain(spec, max(1, num_classes)))
    load_into(network.backbone, state, f"{path} as backbone={backbone}")
    return num_classes, network


@contextmanager
def _opened(path: Path | str) -> Iterator[io.BufferedReader]:
    """A file that fits into the memory.

    Raises:
        RequestError: it does not, or cannot be read, here or inside of the context.
    """
    try:
        with open_file(path, free_memory(torch.device("cpu"))) as file:
            yield file
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error


def _content(path: Path, head: bytes) -> Any:
    try:
        # A safetensors file begins with the length of its header, 8 bytes, and the header with a brace.
        header = int.from_bytes(head[:8], "little")
        if path.suffix == ".safetensors" or (head[8:] == b"{" and header < path.stat().st_size):
            return safetensors.torch.load_file(path)
        if zipfile.is_zipfile(path):  # as torch.save makes them; others may be packed, and unpack to more than they seem
            with zipfile.ZipFile(path) as packed:
                check_size(path, sum(each.file_size for each in packed.infolist()), free_memory(torch.device("cpu")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about contents that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise anything on files that are not theirs
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise RequestError(
                f"{path} holds the Python object {found[1]}, which is not loaded because it could run code; "
                "save the network's state_dict() instead"
            ) from error
        said = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # torch puts advice before it that is of no use here
        reason = f"{type(error).__name__}: {said}".splitlines()[0][:160]
        raise RequestError(
            f"{path} is cut off, damaged, or no file of weights as torch.save and safetensors write them ({reason})"
        ) from error


def _plain(spec: Backbone, num_classes: int) -> Config:
    return Config(backbone=spec, data=Data(source="", num_classes=num_classes))


def _unset(config: Config) -> SupervisedNetwork:
    """The network, its weights still to be loaded; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return build_network(config, initialise=False)


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _few(items: list[str]) -> str:
    more = len(items) - NAMED
    return ", ".join(items[:NAMED]) + (f" and {more} more" if more > 0 else "")
