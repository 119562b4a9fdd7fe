"""A forecast for people, with units."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from dks.config.files import load_choice, own_choices
from dks.config.methods import computed_with
from dks.config.schema import AuxDesign, Backbone, Config, DesignKind, TeacherKind

if TYPE_CHECKING:
    from dks.sweeps.estimate.forecast import Forecast, Network, Range

MEANINGS = {
    "earlier": "from finished runs of the network on this machine",
    "probe": "from some steps on random images on this machine",
    "flops": "from its operations, and how many a second the other networks reach here; right "
    "within a factor of 2 to 3",
}


def text(forecast: Forecast) -> str:
    """The total in a line, and below it a table of the distinct networks."""
    known = [each for each in forecast.networks if each.speed]
    lines = [_summary(forecast)]
    if known:
        rows = [_row(each) for each in known]
        head = {name: name for name in rows[0]}
        widths = {name: max(len(row[name]) for row in (head, *rows)) for name in head}
        lines += [
            "  " + "  ".join(cell.ljust(widths[name]) for name, cell in row.items()).rstrip()
            for row in (head, *rows)
        ]
    sources = {each.speed.source for each in known if each.speed}
    lines += [f"  {source}: {MEANINGS[source]}" for source in MEANINGS if source in sources]
    if forecast.busy:
        lines.append(
            "  other programs use much of this machine now: without them runs may be several "
            "times as fast"
        )
    for each in forecast.networks:
        if each.problem:
            cells = _cells(len(each.cells))
            label = network_label(each.config)
            lines.append(f"  not in the total: {cells} of {label}: {each.problem}")
    return "\n".join(lines)


def _summary(forecast: Forecast) -> str:
    if not forecast.cells:
        return "forecast: none"
    order = " one after another" if forecast.cells > 1 else ""
    parts = [f"{_span(forecast.seconds)} for {_cells(forecast.cells)}{order}"]
    if forecast.slots > 1:
        parts.append(f"{_span(forecast.wall)} with {forecast.slots} at a time")
    parts.append(f"{_number(forecast.device_hours.estimate)} device-hours")
    return f"forecast: {'; '.join(parts)}; on {forecast.machine}"


def _row(network: Network) -> dict[str, str]:
    """Column -> what stands there, for a network with a speed."""
    counted, speed, step, seconds = (
        network.flops,
        network.speed,
        network.seconds_per_step,
        network.seconds,
    )
    assert counted and speed and step and seconds and network.size
    height, width = network.size
    small, large = (_number(n / 1e6) for n in (counted.parameters, counted.training_parameters))
    return {
        "network": network_label(network.config),
        "cells": f"{len(network.cells):,}",
        "time": duration(seconds.estimate),
        "steps": f"{network.steps:,}",
        "batch": f"{network.config.recipe.batch_size} of {height}x{width}",
        "time of a step": _span(step),
        "memory": "?" if speed.memory_mib is None else memory(speed.memory_mib),
        "parameters": f"{small}/{large} M",
        "forward": f"{_number(counted.inference / 1e9)} GFLOPs",
        "step": f"{_number(network.flops_per_step / 1e9)} GFLOPs",
        "from": speed.source,
    }


def _cells(number: int) -> str:
    return f"{number:,} {'cell' if number == 1 else 'cells'}"


def _span(seconds: Range) -> str:
    """For example "3 h 20 min (2 h 40 min to 4 h 10 min)"."""
    return f"{duration(seconds.estimate)} ({duration(seconds.low)} to {duration(seconds.high)})"


def duration(seconds: float) -> str:
    """With units: 12 ms, 4.2 s, 45 s, 12 min, 3 h 20 min, 1,250 h."""
    if seconds < 0.9995:
        return f"{_number(1000 * seconds)} ms"
    if seconds < 59.5:
        return f"{_number(seconds)} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {rest} min" if hours < 10 else f"{round(seconds / 3600):,} h"


def memory(mib: float) -> str:
    """With units: 120 MiB, 3.9 GiB."""
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def _number(value: float) -> str:
    """Two digits or more: 0.14, 4.2, 73, 1,250."""
    if value == 0 or value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def network_label(config: Config) -> str:
    """The network, what it carries in training and how it computes, for people.

    "resnet32 ours c2 c3, 100 classes".
    """
    design, positions = config.aux_design, config.aux_positions
    words = [_backbone_name(config.backbone)]
    if design.kind != DesignKind.none:
        words += [_design_names().get(repr(design)) or design.kind.partition("@")[0]]
        words += [*positions.at, *(["alone"] if positions.alone else [])]
    words += ["+ teacher"] if config.kd_teacher.kind is not TeacherKind.none else []
    parts = [" ".join(words), f"{config.data.num_classes} classes", computed_with(config)]
    return ", ".join(filter(None, parts))


def _backbone_name(backbone: Backbone) -> str:
    """As the group `backbone` calls it: resnet32, wrn28_10, densenet40_12, mobilenet."""
    if "@" in backbone.family:  # an extension
        return backbone.family.partition("@")[0]
    family = backbone.family.removeprefix("cifar_").removeprefix("imagenet_")
    if family in own_choices("backbone"):
        return family
    extra = backbone.width or backbone.growth
    ending = (f"_{extra}" if extra else "") + ("_dropout" if backbone.dropout else "")
    return f"{family}{backbone.depth}{ending}"


@lru_cache(maxsize=1)
def _design_names() -> dict[str, str]:
    """Fields of a branch design -> the choice of the group `aux_design` that has them."""
    names = own_choices("aux_design")
    return {repr(load_choice("aux_design", name, AuxDesign)): name for name in names}
