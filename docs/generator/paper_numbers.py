"""The paper's numbers in docs/howto/paper.md, behind each `<!-- paper: NAME -->`.

`python docs/generator/paper_numbers.py`.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "howto" / "paper.md"
_NOT_AXES = (
    "top1_error",
    "top1_sd",
    "top1_gain",
    "top5_error",
    "top5_gain",
    "printed",
    "where",
    "setting",
    "config_ids",
)


def filled(page: str) -> str:
    """The page with every table as the files of `analysis/paper/` have it."""
    return re.sub(
        r"^(<!-- paper: (\w+) -->)\n(?:\n(?:\|.*\n)+)?",
        lambda found: f"{found[1]}\n\n{table(found[2])}",
        page,
        flags=re.MULTILINE,
    )


def table(name: str) -> str:
    """The paper's numbers for a sweep: its axes, the error in percent and the gain."""
    with (ROOT / "analysis" / "paper" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    axes = [key for key in rows[0] if key not in _NOT_AXES]
    lines = [[*axes, "error (%)", "gain"], [*("---" for _ in axes), "---:", "---:"]]
    lines += [[*(row[axis] for axis in axes), _error(row), _pair(row, "gain")] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _error(row: dict[str, str]) -> str:
    return _pair(row, "error") + (f"({row['top1_sd']})" if row.get("top1_sd") else "")


def _pair(row: dict[str, str], what: str) -> str:
    """Top-1, and behind a stroke top-5 where the paper has it."""
    return "/".join(value for top in ("top1", "top5") if (value := row.get(f"{top}_{what}")))


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
