"""Trained weights from files, and the images that they were trained on.

Read without running anything in them, checked, and put into networks.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dks import data
from dks.config.errors import RequestError, one_line
from dks.config.extensions import require
from dks.config.reading import check_size, open_file
from dks.config.schema import Backbone, Config, Data
from dks.data.batches import channel_statistics
from dks.data.holdout import hold_out
from dks.data.images import Images, ImageSet
from dks.data.sizes import image_size
from dks.machine.memory import free_memory
from dks.models import build_network
from dks.models.network import SupervisedNetwork
from dks.runs import damage
from dks.runs.states import finished_run
from dks.runs.terminal import explain

COUNTER = (
    # of batch normalisation; files from before PyTorch 0.4.1 have none, and no result depends on it
    "num_batches_tracked"
)
NAMED = 3  # how many wrong keys a message names
DEEPEST = 8  # words that a prefix can have
# weights that are means over steps of the training
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?|shadow)(?![a-z])")
# What training scripts write beside the weights. It is not loaded: something empty stands for each
# of them.
BESIDE = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)


@dataclass(frozen=True)
class Weights:
    """The tensors of a network in a file."""

    state: dict[str, Tensor]  # under the network's own names, on the CPU
    # where in the file they were, and which other ones are there; empty if there is nothing to tell
    told: str


def load_state_dict(path: Path | str, names: Iterable[str]) -> Weights:
    """The weights of a network in a file of safetensors or `torch.save`.

    Training scripts put them under some key beside other things (`state_dict`, `net`, ...), and
    wrappers put a prefix before their names (`module.`, `_orig_mod.`, `model.`, ...): taken is what
    has the most of the names. Where averaged (EMA) weights lie beside plain ones, it is the plain
    ones.

    Args:
        names: of the network's tensors.

    Raises:
        RequestError: the file cannot be read, holds no tensors under names, or several sets of the
            network's weights. Nothing in it was executed.
    """
    with _opened(path) as file:
        head = file.read(9)
    content = _content(Path(path), head)
    if not isinstance(content, dict):
        raise RequestError(
            f"{path} holds a {type(content).__name__}, not a state dict: tensors under their names"
        )
    found = dict(_state_dicts(content))
    if not found:
        raise RequestError(f"{path} holds no tensors under names, as a state dict does")
    wanted = {name for name in names if not name.endswith(COUNTER)}
    fits = {
        (key, prefix): count
        for key, state in found.items()
        for prefix, count in _fits(state, wanted).items()
    }
    most = max(fits.values(), default=0)
    best = [place for place, count in fits.items() if count == most] or [
        (max(found, key=lambda key: len(found[key])), "")
    ]
    if most < len(wanted):
        best = best[:1]  # to say what does not fit
    plain = [place for place in best if not AVERAGED.search(".".join(place).lower())] or best
    if len(plain) > 1:
        sets = ", ".join(f"{key}.{prefix}".strip(".") or "at its top" for key, prefix in plain)
        raise RequestError(
            f"{path} holds the weights of this network several times: {sets}; save the ones you "
            f"mean alone"
        )
    key, prefix = plain[0]
    inner = tuple(other for place, other in best if place == key and len(other) > len(prefix))
    taken = {
        name: value
        for name, value in found[key].items()
        if name.startswith(prefix) and not name.startswith(inner)
    }
    state = {name.removeprefix(prefix): value.detach() for name, value in taken.items()}
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise RequestError(
                f"{path}: {prefix}{name} has no plain numbers (layout {value.layout}, "
                f"{value.dtype}, {value.device})"
            )
    left = [other for other, _ in best if other != key] + [
        name for name in found[key] if name not in taken
    ]
    parts = (
        key and f"under {key}",
        prefix and f"without the prefix {prefix}",
        left and f"{_few(left)} left out",
    )
    told = ", ".join(part for part in parts if part)
    return Weights(state, told and one_line(f"weights from {path}: {told}"))


def load_into(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Give a network these weights, all of them and nothing else; on an error it keeps its own.

    Args:
        what: where they come from, for the message.

    Raises:
        RequestError: names are missing or unexpected, or shapes differ; one line that names the
            first few.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(COUNTER)]
    unexpected = [name for name in state if name not in own]
    ill = [
        f"{name} is {_form(state[name])} where the network has {_form(value)}"
        for name, value in own.items()
        if name in state
        and (
            state[name].shape != value.shape
            or value.is_floating_point() > state[name].is_floating_point()
        )
    ]
    problems = [
        f"{kind} {_few(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if ill:
        problems.append(_few(ill))
    if problems:
        raise RequestError(f"{what} does not fit the network: {'; '.join(problems)}")
    # a plain dict says no version, so that torch fills missing counters in
    network.load_state_dict(dict(state))


def fingerprint(path: Path | str) -> str:
    """16 hex digits of the SHA-256 of a file's content.

    Raises:
        RequestError: it cannot be read.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def run_network(runs_dir: Path | str, cell_id: str) -> tuple[Config, SupervisedNetwork]:
    """The configuration of a finished run, and its network with the trained weights, branches
    included, on the CPU.

    Raises:
        RequestError: there is no such run, it is not done, or its files are damaged.
    """
    folder, record = finished_run(runs_dir, cell_id)
    config = folder.read_config()
    for file in require(
        config, [each for attempt in record.attempts for each in attempt.extensions]
    ):
        damage.report(
            file, f"is not what run {cell_id} was trained with, though its version is the same"
        )
    config.backbone.activation_checkpointing = False  # of use in training only
    network = _unset(config)
    load_into(
        network,
        load_state_dict(folder.weights_file, network.state_dict()).state,
        str(folder.weights_file),
    )
    explain(f"weights of {record.label or 'the default configuration'} from {folder.weights_file}")
    return config, network


def file_network(spec: Backbone, name: str, path: Path | str) -> tuple[int, SupervisedNetwork, str]:
    """The plain network whose weights are in a file, on the CPU.

    How many classes its classifier has; and what `Weights` tells.

    Args:
        name: what a person calls the network, for example "resnet18".

    Raises:
        RequestError: the file does not hold its weights.
    """
    # The classifier's tensors are those whose shape depends on the number of classes.
    with torch.device("meta"):
        one, two = (_unset(_plain(spec, count)).backbone.state_dict() for count in (1, 2))
    weights = load_state_dict(path, one)
    state = weights.state
    sizes = [
        len(state[name])
        for name in one
        if one[name].shape != two[name].shape and name in state and state[name].ndim
    ]
    num_classes = max(sizes, default=1)
    network = _unset(_plain(spec, max(1, num_classes)))
    load_into(network.backbone, state, f"{path} as backbone={name}")
    return num_classes, network, weights.told


@dataclass(frozen=True)
class Input:
    """The form of the images that a network is trained on."""

    mean: list[float]  # of each channel, images in [0, 1]: it is subtracted
    std: list[float]  # of each channel: divided by
    size: tuple[int, int]  # height and width, pixels


def input_of(config: Config, train: Images) -> Input:
    """That of a configuration whose training images are these."""
    size = (
        train.stored.shape[2:]
        if isinstance(train, ImageSet)
        else (config.data.image_size or 1,) * 2
    )
    return Input(*channel_statistics(config, train), (size[0], size[1]))


def stated_input(config: Config) -> Input | None:
    """The same, as far as it is known without decoding the images; None: only they tell."""
    mean, std = config.recipe.mean or config.data.mean, config.recipe.std or config.data.std
    size = image_size(config.data)
    return None if mean is None or std is None or size is None else Input(mean, std, size)


def run_input(config: Config) -> Input:
    """The form of the images that the network of a finished run was trained on.

    Its data is read only where nothing else tells.

    Raises:
        RequestError: its data is needed, and is not there any more or has changed.
    """
    if (stated := stated_input(config)) is not None:
        return stated
    data.require(config.data)
    return input_of(
        config, hold_out(data.load(config.data)[0], config.data.holdout, config.seed)[0]
    )


def _state_dicts(content: dict[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict in it that has tensors under names, and where it is.

    The keys that lead there, a dot between them.
    """
    waiting, seen = deque[tuple[str, dict[Any, Any]]]([("", content)]), set[int]()
    while waiting:
        place, found = waiting.popleft()
        if id(found) in seen:
            continue
        seen.add(id(found))
        named = {key: value for key, value in found.items() if isinstance(key, str)}
        if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
            yield place, tensors
        waiting.extend(
            (f"{place}.{key}".lstrip("."), value)
            for key, value in named.items()
            if isinstance(value, dict)
        )


def _fits(state: Iterable[str], wanted: set[str]) -> Counter[str]:
    """Prefix -> how many of the wanted names there are behind it."""
    found = Counter[str]()
    for key in state:
        words = key.split(".", DEEPEST)
        found.update(
            key.removesuffix(name)
            for first in range(len(words))
            if (name := ".".join(words[first:])) in wanted
        )
    return found


class _Beside:
    """Stands for an object that is not loaded."""

    def __init__(self, *ignored: object) -> None: ...

    def __setstate__(self, ignored: object) -> None: ...


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
        # A safetensors file begins with the length of its header, 8 bytes, and the header with a
        # brace.
        header = int.from_bytes(head[:8], "little")
        if path.suffix == ".safetensors" or (head[8:] == b"{" and header < path.stat().st_size):
            return safetensors.torch.load_file(path)
        # as torch.save makes them; others may be packed, and unpack to more than they seem
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                check_size(
                    path,
                    sum(each.file_size for each in packed.infolist()),
                    free_memory(torch.device("cpu")),
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about contents that are refused below
            with torch.serialization.safe_globals([(_Beside, name) for name in BESIDE]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise anything on files that are not theirs
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise RequestError(
                f"{path} holds the Python object {found[1]}, which is not loaded because it "
                f"could run code; "
                "save the network's state_dict() instead"
            ) from error
        # torch puts advice before it that is of no use here
        said = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = f"{type(error).__name__}: {said}".splitlines()[0][:160]
        raise RequestError(
            f"{path} is cut off, damaged, or no file of weights as torch.save and safetensors "
            f"write them ({reason})"
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
