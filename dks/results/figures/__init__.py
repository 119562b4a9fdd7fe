"""Figures of a sweep: learning curves, errors with intervals, error against cost.

Only drawing imports matplotlib.
"""

from dks.results.figures.files import FORMATS, image, write
from dks.results.figures.kinds import KINDS, draw

__all__ = ["FORMATS", "KINDS", "draw", "image", "write"]
