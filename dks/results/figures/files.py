"""Figures as files: the same figure gives the same bytes, on any day and in any folder."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.config.errors import RequestError
from dks.results.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
# None takes out what would differ: the date, and in a PNG the version of matplotlib.
_FACTS: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "dks"},
    "pdf": {"CreationDate": None, "Creator": "dks", "Producer": None},
    "png": {"Software": None},
}


def image(figure: Figure, form: str) -> bytes:
    """The figure in one of FORMATS."""
    title = figure.get_label()
    facts = {**_FACTS[form], **({"Title": title} if title else {})}
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=form, metadata=facts)
    return buffer.getvalue()


def write(figure: Figure, folder: Path, stem: str, forms: Sequence[str] = FORMATS) -> list[Path]:
    """Write `stem.svg`, `.pdf` and `.png`, or some of them.

    A reader sees the old file or the new one, never half of it.

    Raises:
        RequestError: the folder cannot be written to.
    """
    images = {folder / f"{stem}.{form}": image(figure, form) for form in forms}
    for path, content in images.items():
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            draft.replace(path)
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror or error}") from error
        finally:
            if draft.exists():
                draft.unlink()
    return list(images)
