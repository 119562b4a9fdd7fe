"""Equations as pictures inside the page, drawn by matplotlib while the site is built.

No script, no font, no server.

A page writes them as `$...$` and `$$...$$`, as repository viewers know them; `\\tag{4}` at the end
of one gives it its number.
"""

from __future__ import annotations

import html
import re
from functools import cache

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath, TextToPath

SIZE = 16  # pixels of the page's text
_LETTER = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
_MARK = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>|<div '
    r'class="arithmatex">\s*\\\[(?P<block>.*?)\\\]\s*</div>',
    re.DOTALL,
)
_TAG = re.compile(r"\\tag\{(\d+)\}")


def drawn(page: str) -> str:
    """The HTML of a page with every equation in it drawn."""
    return _MARK.sub(_replaced, page)


def _replaced(found: re.Match[str]) -> str:
    if found["inline"] is not None:
        drawn = svg(html.unescape(found["inline"]).strip(), SIZE)
        return f'<span class="equation-inline">{drawn}</span>'
    text = " ".join(html.unescape(found["block"]).split())
    tag = _TAG.search(text)
    number = (
        ""
        if tag is None
        else f'<span class="equation-number" id="equation-{tag[1]}">({tag[1]})</span>'
    )
    # as TeX has fractions on a line of their own
    large = _TAG.sub("", text).replace(r"\frac", r"\dfrac").strip()
    return f'<div class="equation"><div>{svg(large, 1.15 * SIZE)}</div>{number}</div>'


@cache
def svg(latex: str, size: float) -> str:
    """An equation as an SVG element in the colour of the text around it.

    Raises:
        ValueError: matplotlib does not understand it.
    """
    font, text = FontProperties(size=size, math_fontfamily="cm"), f"${latex}$"
    width, height, depth = TextToPath().get_text_width_height_descent(text, font, ismath=True)
    outline = " ".join(
        _LETTER[code] + ",".join(f"{x:.2f} {-y:.2f}" for x, y in points.reshape(-1, 2))
        if code != Outline.CLOSEPOLY
        else "Z"
        for points, code in TextPath((0, 0), text, prop=font).iter_segments(
            curves=True, simplify=False
        )
    )
    said = html.escape(latex, quote=True)
    return (
        f'<svg role="img" aria-label="{said}" viewBox="0 {depth - height:.2f} {width:.2f} '
        f'{height:.2f}" '
        f'style="width:{width / SIZE:.3f}em;height:{height / SIZE:.3f}em;'
        f'vertical-align:{-depth / SIZE:.3f}em">'
        f'<path d="{outline}"/></svg>'
    )
