"""How every figure looks.

The widths of a printed page, one size of letters, colours that the colour-blind tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

SINGLE, DOUBLE = 3.4, 7.0  # inches: one column of a page, two columns
DPI = 300
POINTS = 8  # size of all letters

GREY, PALE = "#595959", "#e6e6e6"
# Okabe and Ito (2008), "Color Universal Design"; the first three differ most in grey as well, and
# yellow is pale on paper.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442")
# Nine for eight colours: a pair comes again after 72 series only. The open diamond is the paper's.
MARKERS = ("o", "s", "^", "v", "X", "P", "<", ">", "p")

_SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.labelpad": 3,
    "axes.labelsize": POINTS,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": POINTS,
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": POINTS,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "legend.columnspacing": 1.2,
    "legend.fontsize": POINTS,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.0,
    "lines.markeredgewidth": 0.7,
    "lines.markersize": 3.6,
    "pdf.fonttype": 42,  # many journals refuse type 3
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "svg.hashsalt": "dks",
    "text.parse_math": False,  # a $ in a label is a $
    "xtick.color": GREY,
    "xtick.labelcolor": "black",
    "xtick.labelsize": POINTS,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "xtick.minor.size": 1.5,
    "xtick.minor.width": 0.4,
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
    "ytick.labelsize": POINTS,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class Look:
    """Colour and marker of a series: either is enough to tell it from its neighbours."""

    colour: str
    marker: str


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for every label, in the order of their first appearance."""
    return {
        label: Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for index, label in enumerate(dict.fromkeys(labels))
    }


@contextmanager
def styled() -> Iterator[None]:
    """Inside this context matplotlib draws in our way, whatever a person's own settings are.

    They come back afterwards.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(
    title: str, width: float, height: float, fitted: bool = True, dpi: int = DPI
) -> Figure:
    """An empty figure of so many inches, known to no window and no notebook; inside of `styled`.

    Args:
        fitted: axes are moved so that all their letters have room, by `settle`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained" if fitted else None)
    FigureCanvasAgg(figure)
    figure.set_label(title)
    return figure


def settle(figure: Figure) -> None:
    """Find the places of all axes, and keep them however often and at whatever resolution the
    figure is drawn.
    """
    for _ in range(2):  # ticks may change once the axes have their size
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        # The solver of the layout varies in last digits, which would be seen in the names inside of
        # an SVG.
        left, bottom, width, height = (round(float(edge), 5) for edge in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def sample(look: Look, label: str, **more: Any) -> Line2D:
    """A line of a series for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, marker=look.marker, label=label, **more)


def legends_below(figure: Figure, *groups: Sequence[Artist]) -> None:
    """Legends below the axes, one under another, each in as many columns as there is room for.

    The figure grows by them.
    """
    made = [_legend(figure, group) for group in groups if group]
    heights = [legend.get_window_extent().height / DPI for legend in made]
    width, height = (float(size) for size in figure.get_size_inches())
    total = height + sum(heights)
    figure.set_size_inches(width, total)
    edge = sum(heights)
    figure.get_layout_engine().set(rect=(0, edge / total, 1, height / total))  # type: ignore[union-attr, call-arg]
    for legend, size in zip(made, heights, strict=True):
        legend.set_bbox_to_anchor((0.5, edge / total))
        edge -= size


def _legend(figure: Figure, handles: Sequence[Artist]) -> Legend:
    limit = figure.get_size_inches()[0] * DPI
    for columns in range(len(handles), 0, -1):
        # matplotlib fills columns; a person reads lines.
        # no line with a single one left over
        across = -(-len(handles) // -(-len(handles) // columns))
        by_column = [handle for first in range(across) for handle in handles[first::across]]
        legend = figure.legend(
            handles=by_column,
            labels=[str(handle.get_label()) for handle in by_column],
            loc="upper center",
            ncols=across,
            borderaxespad=0,
        )
        if columns == 1 or legend.get_window_extent().width <= limit:
            break
        legend.remove()
    for text, handle in zip(legend.texts, by_column, strict=True):
        text.set_gid(handle.get_gid())  # so that the report finds it
    return legend
