"""A sweep as one HTML file that needs no network.

Tables, runs, curves, cost, and what is missing.
"""

from __future__ import annotations

from dks.results.report.page import write_report

__all__ = ["write_report"]
