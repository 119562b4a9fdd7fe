"""Deeply-supervised knowledge synergy.

Ablations of auxiliary classifiers, matching strategies and distillation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dks import renamed as renamed

if TYPE_CHECKING:
    from dks.models import build as build
    from dks.models.attach import attach as attach
    from dks.objectives.synergy import SynergyLoss as SynergyLoss

# Public name -> module. Imported on first use: the command line must not wait for torch.
_PUBLIC = {
    "SynergyLoss": "dks.objectives.synergy",
    "attach": "dks.models.attach",
    "build": "dks.models",
}
__all__ = ["SynergyLoss", "attach", "build"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dks' has no attribute {name!r}")
