"""Draws docs/assets/data_flow.svg: `python docs/generator/data_flow.py`.

Boxes have a light ground and dark letters of their own, and lines are grey: the picture reads on
    white as well as on black.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).resolve().parents[1] / "assets" / "data_flow.svg"
# pixels: of the picture, where both columns begin, and of a box
WIDTH, LEFT, SIDE, STEP, HEIGHT = 640, 10, 424, 100, 68
MAIN_WIDTH, SIDE_WIDTH = 350, 206

# name, what it is, where it lies
CHAIN = (
    ("choices", "one folder a group, one file a choice", "conf/, sweeps/, KEY=VALUE"),
    ("config", "one typed description of a run, checked", "dks/config"),
    ("cell", "its identity: a hash of what can change a result", "dks/sweeps"),
    ("run", "one execution of a cell", "dks/training, dks/models, dks/data"),
    ("record", "what it leaves on disk: the truth", "runs/<cell_id>/, dks/tracking"),
    ("table", "rows x columns of cells, with statistics", "dks/results"),
    ("figures, report", "the same numbers, drawn and as a page", "dks/results"),
)
# row it stands beside, name, what it is, where it lies
BESIDE = (
    (3, "launchers", "worker processes, SLURM", "hydra_plugins"),
    (4, "MLflow", "gets a copy, never waited for", "SQLite or a server"),
    (5, "the paper's numbers", "shown beside ours", "analysis/paper"),
)


def box(x: int, y: int, width: int, texts: tuple[str, str, str], main: bool) -> str:
    fill, edge = ("#e8eefc", "#3f51b5") if main else ("#f3f4f6", "#7a869a")
    name, what, where = map(escape, texts)
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" fill="{fill}" '
        f'stroke="{edge}" stroke-width="1.5"/>\n'
        f'<text x="{x + 12}" y="{y + 21}" class="name">{name}</text>\n'
        f'<text x="{x + 12}" y="{y + 40}">{what}</text>\n'
        f'<text x="{x + 12}" y="{y + 58}" class="where">{where}</text>\n'
    )


def arrow(path: str, dashed: bool = False) -> str:
    style = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" stroke="#7a869a" stroke-width="2" '
        f'marker-end="url(#head)"{style}/>\n'
    )


def top(row: int) -> int:
    return 10 + row * STEP


def middle(row: int) -> int:
    return top(row) + HEIGHT // 2


def picture() -> str:
    height = top(len(CHAIN) - 1) + HEIGHT + 10
    right = LEFT + MAIN_WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="14">\n'
        "<title>From choices to a report: the data flow of dks</title>\n"
        "<style>text { fill: #1f2937 } .name { font-weight: bold; font-size: 15px } "
        ".where { font-family: monospace; font-size: 12px; fill: #4b5563 }</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#7a869a"/></marker></defs>\n'
    ]
    parts += [box(LEFT, top(row), MAIN_WIDTH, texts, True) for row, texts in enumerate(CHAIN)]
    parts += [
        box(SIDE, top(row), SIDE_WIDTH, (name, what, where), False)
        for row, name, what, where in BESIDE
    ]
    down = LEFT + MAIN_WIDTH // 2
    parts += [
        arrow(f"M{down} {top(row) + HEIGHT}V{top(row + 1) - 2}") for row in range(len(CHAIN) - 1)
    ]
    parts.append(arrow(f"M{SIDE} {middle(3)}H{right + 3}"))  # launchers run cells
    parts.append(arrow(f"M{right} {middle(4) - 12}H{SIDE - 3}"))  # records are sent to MLflow
    parts.append(arrow(f"M{SIDE} {middle(5)}H{right + 3}"))
    # --store
    parts.append(
        arrow(
            f"M{SIDE + 40} {top(4) + HEIGHT}V{top(5) - 16}H{right - 60}V{top(5) - 2}", dashed=True
        )
    )
    # What is done is not run again.
    parts.append(
        arrow(f"M{right} {middle(4) + 12}H{right + 26}V{middle(2)}H{right + 3}", dashed=True)
    )
    parts.append(
        f'<text x="{right + 36}" y="{middle(2) + 5}" class="aside">what is done is not run '
        f"again</text>\n"
    )
    parts[0] = parts[0].replace("</style>", " .aside { fill: #7a869a }</style>")
    return "".join(parts) + "</svg>\n"


if __name__ == "__main__":
    FILE.write_text(picture(), encoding="utf-8")
