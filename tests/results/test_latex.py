"""The LaTeX of every table compiles, and nothing of it is lost or runs off the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dks.results import render
from dks.results.study import Study
from tests.support.published import SWEEPS, publish

pytestmark = pytest.mark.slow

DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage[landscape,margin=1.5cm]{geometry}
\begin{document}
%s
\end{document}
"""


@pytest.fixture
def pdflatex() -> str:
    found = shutil.which("pdflatex")
    if found is None or shutil.which("pdftotext") is None:
        assert "CI" not in os.environ, (
            "CI must have the Debian packages texlive-latex-recommended and poppler-utils"
        )
        pytest.skip(
            "there is no pdflatex or no pdftotext here (Debian: texlive-latex-recommended, "
            "poppler-utils)"
        )
    return found


def compiled(pdflatex: str, folder: Path, name: str, text: str) -> tuple[str, str]:
    """The text of the pages, and what pdflatex said; it stops at the first error."""
    (folder / f"{name}.tex").write_text(DOCUMENT % text, encoding="utf-8")
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
    pages = subprocess.run(
        ["pdftotext", "-layout", f"{name}.pdf", "-"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return pages.stdout, done.stdout


@pytest.mark.parametrize("name", SWEEPS)
def test_every_table_of_the_paper_compiles(pdflatex: str, name: str, in_folder: Path) -> None:
    publish(in_folder, name)
    table = Study.open(name).table()
    pages, said = compiled(pdflatex, in_folder, name, render.latex(table))
    assert "Overfull" not in said
    words = set(pages.split())
    for cell in table.cells.values():
        for number in cell.numbers:
            assert number.paper is not None and any(number.paper.mean in word for word in words)


def test_names_with_every_special_character_compile(pdflatex: str, in_folder: Path) -> None:
    golden = (Path(__file__).resolve().parents[1] / "golden" / "table.latex").read_text(
        encoding="utf-8"
    )
    pages, _ = compiled(pdflatex, in_folder, "golden", golden)
    assert re.search(r"50%_&\$#\{x\}[~\u02dc\u223c][\^\u02c6]\\<b>\|\[1\]", pages), pages
