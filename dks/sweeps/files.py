"""Named sweeps: `sweeps/<name>.yaml`, a title, a base and a union of grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dks.config.errors import RequestError
from dks.config.files import declarations
from dks.sweeps.grid import Grid, Point, expand

_KEYS = {"title", "base", "grids"}


@dataclass(frozen=True)
class NamedSweep:
    """The content of one file."""

    name: str
    title: str
    base: dict[str, Any]  # key -> value, for every cell
    grids: tuple[dict[str, list[Any]], ...]  # key -> values, each grid a product; the sweep is their union


def names() -> list[str]:
    """The sweeps there are, sorted."""
    return sorted(path.stem for path in declarations("sweeps").glob("*.yaml"))


def read(name: str) -> NamedSweep:
    """The sweep of that name.

    Raises:
        RequestError: there is none, or its file is not of the right form.
    """
    if name not in names():
        raise RequestError(f"no sweep {name!r}; choose from {', '.join(names())}")
    path = declarations("sweeps") / f"{name}.yaml"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException) as error:
        raise RequestError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path.name} must hold the keys {', '.join(sorted(_KEYS))}")
    if unknown := sorted(map(str, content.keys() - _KEYS)):
        raise RequestError(f"{path.name}: no such key {', '.join(unknown)}; keys are {', '.join(sorted(_KEYS))}")
    grids = content.get("grids")
    if not (isinstance(grids, list) and grids and all(_is_grid(grid) for grid in grids)):
        raise RequestError(f"{path.name}: grids must be a list of grids, each of keys with a list of values")
    return NamedSweep(name, str(content.get("title") or name), dict(content.get("base") or {}), tuple(grids))


def _is_grid(grid: Any) -> bool:
    return isinstance(grid, dict) and bool(grid) and all(isinstance(values, list) and values for values in grid.values())


def grid_of(sweep: NamedSweep, overrides: Sequence[str], parser: OverridesParser) -> Grid:
    """The union of a sweep's grids; `overrides` reach every cell, and one for a swept key replaces its values.

    Its axes are the keys whose values differ between cells, one that a grid does not name counting as a value of its own.
    """
    union: dict[tuple[str, ...], None] = {}
    keys: dict[str, None] = {}
    for grid in sweep.grids:
        lines = [f"{key}={_text(value)}" for key, value in sweep.base.items()]
        lines += [f"{key}={','.join(map(_text, values))}" for key, values in grid.items()]
        parsed = parser.parse_overrides([*lines, *overrides])
        keys.update(dict.fromkeys([*grid, *(override.get_key_element() for override in parsed)]))
        union.update(dict.fromkeys(point.overrides for point in expand(parsed).points))
    values = [dict(item.split("=", 1) for item in point) for point in union]
    axes = tuple(key for key in keys if len({point.get(key) for point in values}) > 1)
    points = (Point(each, {axis: point.get(axis, "-") for axis in axes}) for each, point in zip(union, values, strict=True))
    return Grid(axes, tuple(points), sweep.name, sweep.title)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
