"""What authors of extensions call: a decorator for each kind.

Docs/extending.md has an example of each.

The keyword arguments of what is decorated, if they stand behind a `*`, are the options of the
extension: each has a default, is a key of the configuration (`backbone.options.width=32`) and is
part of a cell's identity. So is the version: raise it when the same options start to compute
something else. Without one it is that of the package, or the first digits of the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dks.config.errors import RequestError
from dks.config.registry import Component, register
from dks.config.schema import Backbone, Data, Stage
from dks.data.contents import digests
from dks.data.images import Facts, ImageSet
from dks.models.attach import places
from dks.models.family import Family, Place, Tap
from dks.models.parts import initialise_convolutions, pooled_head

__all__ = ["Place", "Stage", "Tap", "aux_design", "backbone", "data", "matching_strategy"]

F = TypeVar("F", bound=Callable[..., Any])
BuildStage = Callable[[int, Stage, int], tuple[nn.Module, int]]


def plain_stage(in_channels: int, spec: Stage, stride: int) -> tuple[nn.Module, int]:
    """`spec.blocks` 3x3 convolutions of `spec.width` channels with batch normalisation and ReLU,
    the first with `stride`.
    """
    layers: list[nn.Module] = []
    for number in range(spec.blocks):
        channels, step = (in_channels, stride) if number == 0 else (spec.width, 1)
        layers += [
            nn.Conv2d(channels, spec.width, 3, step, 1, bias=False),
            nn.BatchNorm2d(spec.width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers), spec.width


def backbone(
    name: str,
    *,
    taps: Mapping[str, str],
    version: str | None = None,
    branches: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    recipe: str | None = None,
    stage: BuildStage = plain_stage,
    head: Callable[[int, int], nn.Module] = pooled_head,
    initialise: Callable[[nn.Module], None] = initialise_convolutions,
    block: type[nn.Module] | tuple[type[nn.Module], ...] = (),
    side: int = 32,
) -> Callable[[F], F]:
    """Register what is decorated, `(num_classes, *, options) -> module`, as `backbone=NAME`.

    The module computes logits (N, num_classes) from images (N, 3, H, W).

    Args:
        taps: classifier -> layer of the module where its branch starts: {"c2": "stage2", "c3":
            "stage1"}, c2 the deepest.
        branches: classifier -> (blocks, channels) of each stage of the design `ours`, from shallow
            to deep; None: one block a stage, of twice the channels of the stage before. The path
            has as many down-samplings as the backbone's own.
        recipe: choice of the group `recipe`; None: the default.
        stage: (in channels, spec, stride) -> a stage of a branch, and its channels.
        head: (in channels, classes) -> the end of a branch, from a feature map to logits.
        initialise: sets initial weights in place.
        block: kinds of module whose activations `backbone.activation_checkpointing` forgets.
        side: of the images on which the taps are measured, in pixels.
    """
    what = f"backbone {name}"

    def decorate(given: F) -> F:
        def build(spec: Backbone, num_classes: int) -> nn.Module:
            with _blaming(what):
                module: Any = given(num_classes, **{**_options(what, given), **spec.options})
            if not isinstance(module, nn.Module):
                raise RequestError(f"{what}: it gives {_of_type(module)}, not a torch.nn.Module")
            return module

        def measured(spec: Backbone) -> dict[str, Tap]:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                try:
                    return places(build(spec, 10), taps, torch.empty(1, 3, side, side), 10)
                except RequestError as error:
                    raise RequestError(
                        *(f"{what}: {line.removeprefix('attach: ')}" for line in error.problems)
                    ) from error

        def build_stage(
            spec: Backbone, in_channels: int, part: Stage, stride: int
        ) -> tuple[nn.Module, int]:
            return stage(in_channels, part, stride)

        family = Family(build, measured, build_stage, head, initialise, block, in_order=False)

        def choice() -> dict[str, Any]:
            spec = Backbone(family=name, depth=0, options=_options(what, given))
            stages: Mapping[str, Sequence[tuple[int, int]]] = branches or {
                place: [
                    (1, tap.channels * 2**number) for number in range(1, tap.downsamplings_left + 1)
                ]
                for place, tap in measured(spec).items()
            }
            listed = {
                place: {"stages": [{"blocks": blocks, "width": width} for blocks, width in parts]}
                for place, parts in stages.items()
            }
            chosen = [] if recipe is None else [{"override /recipe": recipe}]
            return {
                "defaults": chosen,
                "backbone": {
                    "family": name,
                    "depth": 0,
                    "branches": listed,
                    "options": spec.options,
                },
            }

        _register("backbone", name, version, given, family, choice)
        return given

    return decorate


def aux_design(name: str, *, version: str | None = None) -> Callable[[F], F]:
    """Register what is decorated, `(place, *, options) -> module`, as `aux_design=NAME`.

    `place` is a `Place`. The module is a branch: a feature map (N, place.tap.channels, H, W) ->
    logits (N, place.num_classes).
    """
    what = f"aux_design {name}"

    def decorate(given: F) -> F:
        def build(place: Place) -> nn.Module:
            with _blaming(what):
                module = given(place, **{**_options(what, given), **place.design.options})
            if not isinstance(module, nn.Module):
                raise RequestError(f"{what}: it gives {_of_type(module)}, not a torch.nn.Module")
            return module

        _register(
            "aux_design",
            name,
            version,
            given,
            build,
            lambda: _plain_choice("aux_design", "kind", name, what, given),
        )
        return given

    return decorate


def matching_strategy(name: str, *, version: str | None = None) -> Callable[[F], F]:
    """Register what is decorated, `(classifiers, *, options) -> ordered pairs`, as
    `matching_strategy=NAME`.

    `classifiers` are the names of those that are trained, from deep to shallow: ["c1", "c2", "c3"].
    A pair (m, n) says that m teaches n.
    """
    what = f"matching_strategy {name}"

    def decorate(given: F) -> F:
        def pairs(classifiers: Sequence[str], options: Mapping[str, Any]) -> list[tuple[str, str]]:
            with _blaming(what):
                found = [tuple(pair) for pair in given(list(classifiers), **options)]
            known = set(classifiers)
            if any(
                len(pair) != 2 or not set(pair) <= known or pair[0] == pair[1] for pair in found
            ) or len(set(found)) < len(found):
                raise RequestError(
                    f"{what}: {found} must be pairs of two of {', '.join(classifiers)}, each "
                    f"pair once"
                )
            return [(m, n) for m, n in found]

        _register(
            "matching_strategy",
            name,
            version,
            given,
            pairs,
            lambda: _plain_choice("matching_strategy", "name", name, what, given),
        )
        return given

    return decorate


def data(
    name: str,
    *,
    classes: int,
    version: str | None = None,
    recipe: str | None = None,
    pad: int = 4,
    flip: bool = True,
    fingerprint: Callable[[Path], str] | None = None,
) -> Callable[[F], F]:
    """Register what is decorated, `(*, options) -> (train, test)`, as `data=NAME`.

    Each of the two is a pair of tensors: images (N, 3, H, W), uint8, of one size, and labels (N,),
    whole numbers from 0. If an argument is called `root`, it gets the folder `data.root`; the
    content of the files there is then part of a cell's identity.

    Args:
        classes: how many there are.
        recipe: choice of the group `recipe`; None: the backbone's.
        pad: pixels added to each side before the random crop of the training images.
        flip: mirror training images at random.
        fingerprint: folder -> a text that differs where its content does; None: of all bytes of all
            files.
    """
    what = f"data {name}"

    def decorate(given: F) -> F:
        reads_files = "root" in inspect.signature(given).parameters

        def facts(spec: Data) -> Facts:
            if not reads_files:
                return Facts(classes, name)
            root = _folder(spec)
            with _blaming(what):
                return Facts(classes, name, str((fingerprint or _fingerprint)(root)))

        def load(spec: Data) -> tuple[ImageSet, ImageSet]:
            folder = {"root": _folder(spec)} if reads_files else {}
            with _blaming(what):
                train, test = given(**folder, **{**_options(what, given), **spec.options})
            return _image_set(f"{what}: training set", train, classes), _image_set(
                f"{what}: test set", test, classes
            )

        def choice() -> dict[str, Any]:
            chosen = [] if recipe is None else [{"override /recipe": recipe}]
            values = {
                "source": name,
                "num_classes": classes,
                "pad": pad,
                "flip": flip,
                "options": _options(what, given),
            }
            return {"defaults": chosen, "data": values}

        _register("data", name, version, given, SimpleNamespace(inspect=facts, load=load), choice)
        return given

    return decorate


def _register(
    kind: str,
    name: str,
    version: str | None,
    given: Callable[..., Any],
    value: Any,
    choice: Callable[[], dict[str, Any]],
) -> None:
    what = f"{kind} {name}"
    if not callable(given):
        raise RequestError(f"{what}: a function or a class is decorated, not {_of_type(given)}")
    register(Component(kind, name, version, given.__module__, _options(what, given), value, choice))


_TYPES = (bool, int, float, str, list)


def _options(what: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments behind the `*`, with their defaults."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name == "root":
            continue
        if type(parameter.default) not in _TYPES:
            raise RequestError(
                f"{what}: the option {name} needs a default that is a number, a text, a truth "
                f"value or a list"
            )
        found[name] = parameter.default
    return found


def _plain_choice(
    group: str, key: str, name: str, what: str, function: Callable[..., Any]
) -> dict[str, Any]:
    return {group: {key: name, "options": _options(what, function)}}


def _image_set(what: str, given: Any, classes: int) -> ImageSet:
    """Tensors as a set.

    Raises:
        RequestError: they are not of the right shape or type.
    """
    images, labels = given if isinstance(given, tuple | list) and len(given) == 2 else (None, None)
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        raise RequestError(
            f"{what}: it must be two tensors, images and labels, not {_of_type(given)}"
        )
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise RequestError(
            f"{what}: images are {images.dtype} {tuple(images.shape)}, not torch.uint8 (N, 3, H, W)"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or not len(labels):
        raise RequestError(
            f"{what}: labels are {labels.dtype} {tuple(labels.shape)}, not whole numbers "
            f"({len(images)},)"
        )
    if not (labels.min() >= 0 and labels.max() < classes):
        raise RequestError(
            f"{what}: labels go from {labels.min()} to {labels.max()}, not from 0 to {classes - 1}"
        )
    return ImageSet(images, labels.long())


def _folder(spec: Data) -> Path:
    if spec.root is None or not Path(spec.root).is_dir():
        raise RequestError(
            f"data.root={spec.root} is not a folder; name the one with the files of {spec.source}"
        )
    return Path(spec.root)


def _fingerprint(root: Path) -> str:
    digest, paths = hashlib.sha256(), sorted(path for path in root.rglob("*") if path.is_file())
    content = digests(root, {str(path): [str(path)] for path in paths})
    for path in paths:
        digest.update(f"{path.relative_to(root).as_posix()}\0{content[str(path)]}\0".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """An error of an extension is one line that names it."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"{what}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _of_type(value: object) -> str:
    return f"an object of type {type(value).__name__}"
