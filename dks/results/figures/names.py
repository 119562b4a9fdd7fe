"""What a figure calls a configuration: the paper's words for what the paper knows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from dks.config.errors import one_line
from dks.config.names import long_name

_METHODS = {
    "baseline": "baseline",
    "ds": "DS",
    "dks": "DKS",
    "single": "branch alone",
    "alone": "alone",
}
_DESIGNS = {
    "ap_2fc": "AP+2FC",
    "ap_conv_2fc": "AP+1Conv+2FC",
    "narrow": "narrow blocks",
    "shallow": "shallow blocks",
    "ours": "ours",
}
_STRATEGIES = {"topdown": "top-down", "bottomup": "bottom-up", "bidir": "bi-directional"}
_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
LONGEST = 40  # letters of a name that leave room for something else
# Values that say that there is nothing, or nothing of its own: left out where something else is
#     said.
_NOTHING = ("none", "-")


def method_name(method: str) -> str:
    """`kd_c1_ds` is "KD on C1+DS" (Table 6)."""
    taught, _, rest = method.removeprefix("kd_").partition("_")
    if method.startswith("kd_"):
        return f"KD on {taught.upper()}" + (f"+{method_name(rest)}" if rest else "")
    return _METHODS.get(method, method)


def backbone_name(backbone: str) -> str:
    """`wrn28_10_dropout` is "WRN-28-10 (0.3 dropout)" (Table 1)."""
    if match := re.fullmatch(r"resnet(\d+)", backbone):
        return f"ResNet-{match[1]}"
    if match := re.fullmatch(r"densenet(\d+)_(\d+)", backbone):
        return f"DenseNet (d={match[1]}, k={match[2]})"
    if match := re.fullmatch(r"wrn(\d+)_(\d+)(_dropout)?", backbone):
        return f"WRN-{match[1]}-{match[2]}{' (0.3 dropout)' if match[3] else ''}"
    return {"mobilenet": "MobileNet"}.get(backbone, backbone)


def value_name(axis: str, value: str) -> str:
    """One value of one axis; of an axis that the paper has no words for, the key as well."""
    match long_name(axis):
        case "method" | "training":
            return method_name(value)
        case "backbone":
            return backbone_name(value)
        case "aux_design":
            return _DESIGNS.get(value, value)
        case "aux_positions" | "classifier":
            return value.upper() if re.fullmatch(r"(c\d)+", value) else value
        case "matching_strategy":
            return _STRATEGIES.get(value, value)
        case "data":
            return _DATA.get(value, value)
        case _:
            return f"{axis}={value}"


def names(axes: Sequence[str], labels: Sequence[Sequence[str]]) -> list[str]:
    """A name for each of the labels; where two would be the same, they are told in full."""
    short = [_short(axes, each) for each in labels]
    seen = Counter(short)
    full = [", ".join(map("=".join, zip(axes, each, strict=True))) for each in labels]
    told = [name if seen[name] == 1 else whole for name, whole in zip(short, full, strict=True)]
    return [
        name if len(name) <= LONGEST else f"{one_line(name, LONGEST)} ({number})"
        for number, name in enumerate(told, start=1)
    ]


def _short(axes: Sequence[str], labels: Sequence[str]) -> str:
    pairs = list(zip(axes, labels, strict=True))
    telling = [value_name(axis, value) for axis, value in pairs if value not in _NOTHING]
    return ", ".join(telling or [f"{axis}={value}" for axis, value in pairs])
