"""A matplotlib figure as SVG inside of a page, and what its script needs to read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from dks.results.figures.files import image
from dks.results.figures.style import COLOURS, GREY, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
# colour of a figure -> that of the page, which is another one in the dark
_COLOURS = {
    "#ffffff": "var(--paper)",
    GREY: "var(--soft)",
    PALE: "var(--line)",
    **{colour.lower(): f"var(--c{number})" for number, colour in enumerate(COLOURS)},
}
_ZOOM = 1.85  # CSS pixels a point: letters of 8 points are read like the page's own
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ElementTree.register_namespace("", SVG)


def chart(figure: Figure, number: int) -> tuple[Markup, dict[str, Any]]:
    """The figure as an `svg` element that a strict content policy allows, and its values.

    What it draws of a series has `data-series`, and a class for its part (`test`, `train`, `band`,
    `runs`). Over its name in the legend lies a `key`. Single points have a `title`.

    Args:
        number: of the figure in its page, so that names inside of it are its own.
    """
    text = _NO_XML.sub("", image(figure, "svg").decode())
    root = ElementTree.fromstring(text)
    width, height = (72 * float(size) for size in figure.get_size_inches())
    del root.attrib["height"], root.attrib["version"]
    root.attrib |= {
        "width": f"{_ZOOM * width:.0f}",
        # what a style of matplotlib says of all elements
        "fill": _COLOURS[COLOURS[0]],
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    names = {line.get_gid(): str(line.get_label()) for line in _marked(figure)}
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
        _adapt(parent, f"f{number}-", names)
    root.extend(_keys(figure, height))
    return Markup(ElementTree.tostring(root, encoding="unicode")), {
        "names": {name.partition("-")[2]: label for name, label in names.items() if name},
        "panels": [_panel(axes, width, height) for axes in figure.axes if axes.get_visible()],
    }


def _marked(figure: Figure) -> Iterator[Line2D]:
    """The lines of a figure that have a name."""
    return (line for axes in figure.axes for line in axes.lines if line.get_gid())


def _adapt(element: ElementTree.Element, prefix: str, names: dict[Any, str]) -> None:
    """Presentation attributes for a style, the page's colours, and ids of its own."""
    attributes = element.attrib
    for declaration in filter(None, attributes.pop("style", "").split(";")):
        name, value = (part.strip() for part in declaration.split(":", 1))
        attributes[name] = _COLOURS.get(value, value)
    if _LINK in attributes:
        attributes["href"] = f"#{prefix}{attributes.pop(_LINK)[1:]}"
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("#", f"#{prefix}")
    if "d" in attributes:
        attributes["d"] = re.sub(r"\d+\.\d{3,}", _rounded, attributes["d"])
    name = attributes.pop("id", "")
    kind, _, series = name.partition("-")
    if kind == "point":
        title = ElementTree.Element(f"{{{SVG}}}title")
        title.text = names[name]
        element.insert(0, title)
    elif kind in ("test", "train", "band", "runs"):
        attributes |= {"class": kind, "data-series": series}
    elif name and not name.rpartition("_")[2].isdigit():  # those are counted, and nothing uses them
        attributes["id"] = prefix + name


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}"


def _keys(figure: Figure, height: float) -> Iterator[ElementTree.Element]:
    """A button over every name in the legend of the series."""
    from matplotlib.transforms import Bbox

    scale = 72 / figure.dpi
    for legend in figure.legends:
        for handle, text in zip(legend.legend_handles, legend.texts, strict=True):
            if (name := text.get_gid()) is None or handle is None:
                continue
            box = Bbox.union([handle.get_window_extent(), text.get_window_extent()])
            yield ElementTree.Element(
                f"{{{SVG}}}rect",
                {
                    "class": "key",
                    "data-series": name.partition("-")[2],
                    "x": f"{box.x0 * scale - 4:.1f}",
                    "y": f"{height - box.y1 * scale - 3:.1f}",
                    "width": f"{box.width * scale + 8:.1f}",
                    "height": f"{box.height * scale + 6:.1f}",
                    "rx": "5",
                    "tabindex": "0",
                    "role": "button",
                    "aria-pressed": "true",
                    "aria-label": text.get_text(),
                },
            )


def _panel(axes: Axes, width: float, height: float) -> dict[str, Any]:
    """Where a panel lies in the SVG, and the curves in it: series, part, epochs, values."""
    box = axes.get_position()
    lines = [
        (line.get_gid(), *(np.asarray(line.get_data(), dtype=float).tolist()))
        for line in axes.lines
        if str(line.get_gid()).startswith(("test-", "train-"))
    ]
    return {
        "box": [
            round(each, 2)
            for each in (
                box.x0 * width,
                (1 - box.y1) * height,
                box.width * width,
                box.height * height,
            )
        ],
        "x": [round(float(edge), 5) for edge in axes.get_xlim()],
        "lines": [
            [
                name.partition("-")[2],
                name.partition("-")[0],
                [int(epoch) for epoch in epochs],
                [float(f"{value:.5g}") for value in values],
            ]
            for name, epochs, values in lines
        ],
    }
