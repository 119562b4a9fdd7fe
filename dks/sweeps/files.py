"""Named sweeps.

`sweeps/<name>.yaml`: a title, a base and a union of grids, or a union of other sweeps.

    title: ...                            # the caption of its table
    table:                                # optional
      rows: [backbone]                    # without both, the swept keys are the axes, the last one
      columns: [method]                   # the columns; classifier and training instead: a row for
                                          # each classifier of a network (Table 5)
      metrics: [top1, top5]               # top1 alone if not given
      gain: [baseline]                    # over baseline, ds or alone (the same classifier); if
                                          # not given, over the baseline
      aside: {method: baseline}           # cells that are told beneath the table
    base: {data: cifar100}                # optional: key -> value, for every cell
    grids:                                # a union; each is a product of the values of its keys
      - backbone: [resnet32, resnet110]
        method: [baseline, ds]
        seed: 1..5                        # 1, 2, 3, 4, 5; one value is a list of one
        zip:                              # keys that change together
          - {label_noise: [none, uniform], label_noise.ratio: [0, 0.5]}
        exclude: [{backbone: resnet110, method: [ds]}]          # combinations left out
      - method: kd_c1
        choose: {kd_teacher.temperature: [1, 5], holdout: 5000} # the best one on so many held-out
                                                                # training images
    include: [table1, table2]             # instead of grids and table; a base beside it reaches
                                          # every cell as an override does

A file is checked as a whole when it is read: two points that are the same cell, or that fill one
place of the table with different cells, are refused. Overrides are applied afterwards, and points
that they make equal are one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dks.config.errors import RequestError, short
from dks.config.files import declarations
from dks.config.names import long_name
from dks.config.ranges import whole_numbers
from dks.config.reading import MIB, read_text
from dks.sweeps.points import (
    HOLDOUT,
    Choose,
    Dimension,
    Point,
    Product,
    Settings,
    axes_of,
    check_size,
    crowded,
    matches,
    plain,
    points_of,
)

# What a file, a table and a grid can hold beside the keys of a configuration.
_KEYS = {"title", "table", "base", "grids", "include"}
_TABLE_KEYS = {"rows", "columns", "metrics", "gain", "aside"}
METRICS = ("top1", "top5")
GAINS = ("baseline", "ds", "alone")
# Axes that come from the classifiers of a network and not from a key.
CLASSIFIER, TRAINING = "classifier", "training"
_GRID_KEYS = {"zip", "exclude", "choose"}


@dataclass(frozen=True)
class TableShape:
    """How the table of a sweep looks, beyond its axes."""

    metrics: tuple[str, ...] = ("top1",)
    gain: tuple[str, ...] | None = None  # None: over the baseline, where there is one
    # axis -> value of the cells told beneath the table
    aside: dict[str, str] = field(default_factory=dict)
    # CLASSIFIER and TRAINING among them: a row for every classifier of a network
    classifier_rows: tuple[str, ...] = ()
    classifier_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedSweep:
    """The content of one file."""

    name: str
    title: str
    base: Settings  # for every cell
    grids: tuple[Product, ...] = ()  # the sweep is their union
    rows: tuple[str, ...] | None = None  # axes of its table; None: not given
    columns: tuple[str, ...] | None = None
    shape: TableShape = TableShape()
    include: tuple[NamedSweep, ...] = ()  # instead of grids

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that it is made from."""
        return (self.name, *(name for part in self.include for name in part.files))


def names() -> list[str]:
    """The sweeps there are, sorted."""
    return sorted(path.stem for path in declarations("sweeps").glob("*.yaml"))


def path_of(name: str) -> Path:
    """Where the file of a sweep is, if there is one."""
    return declarations("sweeps") / f"{name}.yaml"


def read(name: str) -> NamedSweep:
    """The sweep of that name.

    Raises:
        RequestError: there is none, or its file is not of the right form.
    """
    if name not in names():
        raise RequestError(f"no sweep {name!r}; choose from {', '.join(names())}")
    return _read(name, ())


def _read(name: str, within: tuple[str, ...]) -> NamedSweep:
    """A sweep that exists; `within`: the sweeps that include it."""
    file = f"{name}.yaml"
    content = _content(name)
    _only(file, content, _KEYS)
    if ("grids" in content) == ("include" in content):
        raise RequestError(f"{file}: it must have one of grids and include")
    title = str(content.get("title") or name)
    base = _base(file, content.get("base"))
    if "include" in content:
        if "table" in content:
            raise RequestError(
                f"{file}: table stands beside grids; every sweep in include has its own"
            )
        return NamedSweep(
            name, title, base, include=_include(file, content["include"], (*within, name))
        )
    grids = content["grids"]
    if not (
        isinstance(grids, list) and grids and all(isinstance(grid, dict) and grid for grid in grids)
    ):
        raise RequestError(f"{file}: grids must be a list of grids, each of keys with values")
    products = tuple(
        _product(f"{file}: grid {number}", grid, base) for number, grid in enumerate(grids, 1)
    )
    union = [[*points_of(product, base)] for product in products]
    points = [point for its in union for point in its]
    rows, columns, shape = _table(file, content.get("table"), points)
    _check_union(file, union, axes_of(points, rows, columns))
    return NamedSweep(name, title, base, products, rows, columns, shape)


def _content(name: str) -> dict[str, Any]:
    file = f"{name}.yaml"
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(read_text(path_of(name), MIB))))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{file} must hold the keys {', '.join(sorted(_KEYS))}")
    return {str(key): value for key, value in content.items()}


def _only(where: str, given: dict[Any, Any], known: Iterable[str]) -> None:
    if unknown := sorted({str(key) for key in given} - set(known)):
        raise RequestError(
            f"{where}: no such key {', '.join(unknown)}; keys are {', '.join(sorted(known))}"
        )


def _base(file: str, base: Any) -> Settings:
    if base is None:
        return {}
    if not isinstance(base, dict):
        raise RequestError(f"{file}: base must hold keys with a value each")
    _each_once(f"{file}: base", base)
    return {long_name(str(key)): (str(key), written(value)) for key, value in base.items()}


def _each_once(where: str, keys: Iterable[Any]) -> None:
    seen: dict[str, str] = {}
    for key in map(str, keys):
        if (other := seen.setdefault(long_name(key), key)) != key:
            raise RequestError(f"{where}: {other} and {key} are the same key; give one of them")


def _include(file: str, include: Any, within: tuple[str, ...]) -> tuple[NamedSweep, ...]:
    if not (isinstance(include, list) and include):
        raise RequestError(
            f"{file}: include must be a list of sweeps; choose from {', '.join(names())}"
        )
    for name in include:
        if name not in names():
            raise RequestError(
                f"{file}: include: no sweep {name!r}; choose from {', '.join(names())}"
            )
        if name in within:
            raise RequestError(
                f"{file}: include goes round in a circle: {', '.join((*within, name))}"
            )
        if include.count(name) > 1:
            raise RequestError(f"{file}: include: {name} stands there twice")
    return tuple(_read(name, within) for name in include)


def _product(where: str, grid: dict[Any, Any], base: Settings) -> Product:
    keys: list[str] = []
    dimensions: list[Dimension] = []
    for key, value in grid.items():
        if key == "zip":
            for zipped in _dicts(f"{where}: zip", value):
                dimensions.append(_zip(f"{where}: zip", zipped))
                keys += dimensions[-1][0]
        elif key not in _GRID_KEYS:
            name = long_name(str(key))
            dimensions.append(
                tuple({name: (str(key), text)} for text in _values(f"{where}: {key}", value))
            )
            keys.append(name)
    if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise RequestError(f"{where}: {', '.join(repeated)} stands there twice; give each key once")
    if not keys:
        raise RequestError(
            f"{where}: it names no key of a configuration, such as method: [ds, dks]"
        )
    check_size(where, map(len, dimensions))
    choose = _choose(f"{where}: choose", grid["choose"], keys, base) if "choose" in grid else None
    known = dict.fromkeys([*keys, *base])
    excludes = [
        _exclude(f"{where}: exclude", exclude, known)
        for exclude in _dicts(f"{where}: exclude", grid.get("exclude", []))
    ]
    product = Product(tuple(dimensions), (), choose)
    every = [point.settings for point in points_of(product, base)]
    for number, exclude in enumerate(excludes, 1):
        if not any(matches(settings, exclude) for settings in every):
            raise RequestError(
                f"{where}: exclude {number} matches no cell of this grid; drop it, or correct "
                f"its values"
            )
    if all(any(matches(settings, exclude) for exclude in excludes) for settings in every):
        raise RequestError(f"{where}: exclude leaves nothing of it")
    return replace(product, excludes=tuple(excludes))


def _dicts(where: str, value: Any) -> list[dict[Any, Any]]:
    if not (isinstance(value, list) and all(isinstance(each, dict) and each for each in value)):
        raise RequestError(f"{where} must be a list, each entry of keys with values")
    return value


def _zip(where: str, zipped: dict[Any, Any]) -> Dimension:
    _each_once(where, zipped)
    columns = {str(key): _values(f"{where}: {key}", value) for key, value in zipped.items()}
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
        raise RequestError(
            f"{where}: keys that change together need as many values each; {lengths}"
        )
    rows = zip(*columns.values(), strict=True)
    return tuple(
        {long_name(key): (key, text) for key, text in zip(columns, row, strict=True)}
        for row in rows
    )


def _exclude(
    where: str, exclude: dict[Any, Any], known: Iterable[str]
) -> dict[str, frozenset[str]]:
    _each_once(where, exclude)
    found = {
        long_name(str(key)): frozenset(map(plain, _values(f"{where}: {key}", value)))
        for key, value in exclude.items()
    }
    _only(where, found, known)
    return found


def _choose(where: str, choose: Any, keys: Iterable[str], base: Settings) -> Choose:
    chosen = [key for key in choose if key != "holdout"] if isinstance(choose, dict) else []
    if len(chosen) != 1 or "holdout" not in choose:
        raise RequestError(
            f"{where} must hold one key with its candidates, and holdout, a number of training "
            f"images"
        )
    (key,), holdout = map(str, chosen), choose["holdout"]
    if type(holdout) is not int or holdout < 1:
        raise RequestError(
            f"{where}: holdout={written(holdout)} must be a whole number of at least 1, of "
            f"training images"
        )
    for name in (long_name(key), HOLDOUT):
        if name in keys or name in base:
            raise RequestError(
                f"{where}: {name} is set by choose, and cannot be a key of the grid or of base"
            )
    candidates = _values(f"{where}: {key}", choose[key])
    if len(set(map(plain, candidates))) < max(2, len(candidates)):
        raise RequestError(f"{where}: {key} must have two candidates or more, all different")
    return Choose(key, candidates, holdout)


def _values(where: str, value: Any) -> tuple[str, ...]:
    """The values of a key: a list, one value, or a range of whole numbers such as 1..5."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise RequestError(f"{where} has no values")
    texts: list[str] = []
    for item in items:
        if isinstance(item, str) and ".." in item and "/" not in item:
            if not (numbers := whole_numbers(item)):
                raise RequestError(
                    f"{where}: {short(item)} is no range; write the first and the last whole "
                    f"number, as in 1..5"
                )
            check_size(f"{where}: {item}", [numbers.stop - numbers.start])
            texts += map(str, numbers)
        else:
            texts.append(written(item))
    return tuple(texts)


_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_/-]*(\.[A-Za-z_][A-Za-z0-9_/-]*)*")
_RESERVED = {"null", "true", "false", "inf", "nan"}


def written(value: Any) -> str:
    """A value as it stands behind `key=` in an override.

    Quoted where Hydra's grammar would read something else.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    if not isinstance(value, str) or (_BARE.fullmatch(value) and value.lower() not in _RESERVED):
        return str(value)
    # a tenth of a second that tables do without
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.single).with_quotes()


def _table(
    file: str, table: Any, points: Sequence[Point]
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, TableShape]:
    """Axes of rows and of columns, None where the swept keys are to be the axes, and the rest."""
    if table is None:
        return None, None, TableShape()
    if not (isinstance(table, dict) and table):
        raise RequestError(f"{file}: table must hold some of {', '.join(sorted(_TABLE_KEYS))}")
    _only(f"{file}: table", table, _TABLE_KEYS)
    for key in ("rows", "columns", "metrics", "gain"):
        if not isinstance(table.get(key, []), list):
            raise RequestError(f"{file}: table: {key} must be a list")
    known = {
        name: key for point in points for name, (key, _) in point.settings.items() if name != "seed"
    }
    shape = TableShape(
        _among(f"{file}: table: metrics", table.get("metrics", ["top1"]), METRICS),
        _among(f"{file}: table: gain", table["gain"], GAINS) if "gain" in table else None,
        _aside(f"{file}: table: aside", table.get("aside", {}), known),
    )
    rows, columns = (tuple(map(str, table.get(key, []))) for key in ("rows", "columns"))
    if {*rows, *columns} & {CLASSIFIER, TRAINING}:
        if {*rows, *columns} - {CLASSIFIER, TRAINING} or CLASSIFIER not in {*rows, *columns}:
            raise RequestError(
                f"{file}: table: {CLASSIFIER} can share a table with {TRAINING} alone, and "
                f"{TRAINING} needs it"
            )
        return None, None, replace(shape, classifier_rows=rows, classifier_columns=columns)
    if not rows and not columns:
        return None, None, shape
    axes = (*rows, *columns)
    for axis in axes:
        if long_name(axis) not in known:
            why = (
                "runs that differ in the seed share a place"
                if axis == "seed"
                else "no grid has that key"
            )
            raise RequestError(
                f"{file}: table: {axis} cannot be an axis, for {why}; choose from "
                f"{', '.join(known.values())}"
            )
    if len({long_name(axis) for axis in axes}) < len(axes):
        raise RequestError(f"{file}: table: each key can be one axis only")
    return rows, columns, shape


def _among(where: str, given: Sequence[Any], known: Sequence[str]) -> tuple[str, ...]:
    if not given or len({*given}) < len(given) or not {*given} <= {*known}:
        raise RequestError(f"{where} must be one or more of {', '.join(known)}")
    return tuple(map(str, given))


def _aside(where: str, given: Any, known: dict[str, str]) -> dict[str, str]:
    if not (isinstance(given, dict) and {long_name(str(key)) for key in given} <= {*known}):
        raise RequestError(
            f"{where} must hold keys of its grids with a value each; choose from "
            f"{', '.join(known.values())}"
        )
    return {str(key): written(value) for key, value in given.items()}


def _check_union(file: str, union: Sequence[Sequence[Point]], axes: Sequence[str]) -> None:
    """`union`: the points of each grid."""
    grids: dict[Any, int] = {}  # point -> number of the first grid that has it
    for number, points in enumerate(union, 1):
        for point in points:
            key = point.choose, point.meaning
            if grids.get(key) == number:
                raise RequestError(f"{file}: grid {number} has the cell {point} twice")
            if key in grids:
                raise RequestError(
                    f"{file}: grid {grids[key]} and grid {number} both have the cell {point}"
                )
            grids[key] = number
    for crowd in crowded([point for points in union for point in points], axes):
        said = [f"grid {grids[point.choose, point.meaning]} ({point})" for point in crowd[:2]]
        raise RequestError(
            f"{file}: {' and '.join(said)} fill the same place of the table with different cells; "
            f"name what tells them apart in table"
        )
