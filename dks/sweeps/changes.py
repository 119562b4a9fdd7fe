"""Does a sweep that was begun still mean the same cells? Its file, or `conf/`, may have been edited
since.
"""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser

from dks.config.compose import Composer, compose_here
from dks.config.errors import RequestError
from dks.config.overrides import checked
from dks.runs.states import State
from dks.sweeps.files import read
from dks.sweeps.manifest import Manifest
from dks.sweeps.plan import Plan, plan
from dks.sweeps.sources import Sources
from dks.sweeps.spec import expand, grid_of


class Changes:
    """For several sweeps, so that what they are made from is read once.

    Only one that was edited is composed again.
    """

    def __init__(self) -> None:
        self._sources = Sources()

    def of(self, begun: Manifest) -> str | None:
        """A line on how a sweep is another one now than when it was begun.

        None where it is not, or where nobody knows.
        """
        if self._sources.are(begun.definition):
            return None
        said = f"the definition has changed since the launch of {begun.name}"
        try:
            differences = _differences(begun, _planned(begun))
        except RequestError as error:
            return f"{said}, and is refused now: {error.problems[0]}"
        return (
            f"{said}: {differences}; dks sweep run {begun.name} goes by what it is now"
            if differences
            else None
        )


def _planned(begun: Manifest) -> Plan:
    """What the same request means now."""
    parser, compose = OverridesParser.create(), Composer(compose_here)
    if begun.named is None:
        grid = expand(parser.parse_overrides(checked(begun.request)))
    else:
        grid = grid_of(read(begun.named), begun.request, parser, compose)
    return plan(grid, compose, absent_ok=True)


def _differences(begun: Manifest, now: Plan) -> str:
    """In words; empty where there are none."""
    cells = {
        cell.cell_id: cell for part in now.parts for cell in (*part.selection_cells, *part.cells)
    }
    if begun.undecided:  # cells that follow a choice are no news
        following = {cell.cell_id for part in now.parts for cell in part.following}
        cells = {cell_id: cell for cell_id, cell in cells.items() if cell_id not in following}
    new = [cells[cell_id].state for cell_id in cells.keys() - set(begun.cell_ids)]
    missing, gone = new.count(State.missing), len(set(begun.cell_ids) - cells.keys())
    if not new and not gone:
        asked = now.manifests()[-1]
        same = (asked.title, asked.axes, asked.rows, asked.columns) == (
            begun.title,
            begun.axes,
            begun.rows,
            begun.columns,
        )
        return "" if same else "the same cells under another title or in other places"
    told = [f"{missing} {'cell' if missing == 1 else 'cells'} not begun"]
    told += [f"{len(new) - missing} more that were begun elsewhere"] if len(new) > missing else []
    return ", ".join([*told, *([f"{gone} no longer in it"] if gone else [])])
