"""Figures of a sweep: learning curves, errors with intervals, error against cost. Only drawing imports matplotlib."""

from dks.figures.files import FORMATS, image, write
from dks.figures.kinds import KINDS, draw

__all__ = ["FORMATS", "KINDS", "draw", "image", "write"]
