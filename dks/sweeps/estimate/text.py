"""A forecast for people, with units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from dks.config.files import load_choice, own_choices
from dks.config.methods import computed_with
from dks.config.schema import AuxDesign, Backbone, Config, DesignKind, TeacherKind
from dks.sweeps.estimate.speeds import Source

if TYPE_CHECKING:
    from dks.sweeps.estimate.forecast import Forecast, Line, Range


def text(forecast: Forecast) -> str:
    """The total in a line, and below it a table of the distinct networks."""
    lines = [_summary(forecast)]
    known = [line for line in forecast.lines if line.seconds is not None]
    if known:
        lines += _table([_HEAD, *map(_row, known)])
        sources = {line.source for line in known}
        lines += [
            f"  {source.value}: {meaning}"
            for source, meaning in _MEANINGS.items()
            if source in sources
        ]
    if forecast.busy:
        lines.append(
            "  other programs use much of this machine now: without them runs may be several "
            "times as fast"
        )
    for line in forecast.lines:
        if line.seconds is None:
            cells = "1 cell" if line.cells == 1 else f"{line.cells} cells"
            lines.append(f"  not in the total: {cells} of {line.network}: {line.problem}")
    return "\n".join(lines)


_HEAD = (
    *(
        "network",
        "cells",
        "time",
        "steps",
        "batch",
        "time of a step",
        "memory",
        "parameters",
        "forward",
        "step",
        "from",
    ),
)
_MEANINGS = {
    Source.earlier: "from finished runs of the network on this machine",
    Source.probe: "from some steps on random images on this machine",
    Source.flops: "from operations a step, and how many a second are reached here; right within "
    "a factor of 2 to 3",
}


def _summary(forecast: Forecast) -> str:
    seconds, hours, cells = forecast.seconds, forecast.device_hours, forecast.cells
    if not cells:
        return "forecast: none"
    order = " one after another" if cells > 1 else ""
    parts = [f"{_span(seconds)} for {cells:,} {'cell' if cells == 1 else 'cells'}{order}"]
    if forecast.slots > 1:
        parts.append(f"{_span(forecast.wall)} with {forecast.slots} at a time")
    parts.append(f"{_number(hours.estimate)} device-hours")
    return f"forecast: {'; '.join(parts)}; on {forecast.machine}"


def _row(line: Line) -> tuple[str, ...]:
    assert line.seconds and line.seconds_per_step and line.flops and line.source and line.image_size
    height, width = line.image_size
    return (
        line.network,
        f"{line.cells:,}",
        duration(line.seconds.estimate),
        f"{line.steps:,}",
        f"{line.batch_size} of {height}x{width}",
        _span(line.seconds_per_step),
        "?" if line.memory_mib is None else memory(line.memory_mib),
        f"{_number(line.flops.parameters / 1e6)}/{_number(line.flops.training_parameters / 1e6)} M",
        f"{_number(line.flops.inference / 1e9)} GFLOPs",
        f"{_number(line.flops.step * line.batch_size / 1e9)} GFLOPs",
        line.source.value,
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


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
        words += [
            _design_name(repr(design)) or design.kind.partition("@")[0],
            *positions.at,
            *(["alone"] if positions.alone else []),
        ]
    words += ["+ teacher"] if config.kd_teacher.kind is not TeacherKind.none else []
    return ", ".join(
        filter(None, [" ".join(words), f"{config.data.num_classes} classes", computed_with(config)])
    )


def _backbone_name(backbone: Backbone) -> str:
    """As the group `backbone` calls it: resnet32, wrn28_10, densenet40_12, mobilenet."""
    if "@" in backbone.family:  # an extension
        return backbone.family.partition("@")[0]
    family = backbone.family.removeprefix("cifar_").removeprefix("imagenet_")
    known = own_choices("backbone")
    extra = backbone.width or backbone.growth
    ending = (f"_{extra}" if extra else "") + ("_dropout" if backbone.dropout else "")
    name = f"{family}{backbone.depth}{ending}"
    return family if family in known else name


@lru_cache(maxsize=64)
def _design_name(design: str) -> str | None:
    """The choice of the group `aux_design` with these fields."""
    named = {
        repr(load_choice("aux_design", name, AuxDesign)): name for name in own_choices("aux_design")
    }
    return named.get(design)
