"""The ids of the paper's settings in analysis/paper/*.csv.

`python analysis/identify.py`, whenever `SCHEMA_VERSION` was raised or what it means to be the same
configuration has changed.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dks.config.compose import Composer, compose_here
from dks.sweeps.paper import PaperRow, setting_id, settings

FILES = sorted((Path(__file__).parent / "paper").glob("*.csv"))
_composer = Composer(compose_here)


def identified(text: str) -> str:
    """The content of a file, its `config_ids` as its settings have them."""
    rows, out = list(csv.DictReader(text.splitlines())), io.StringIO()
    for row in rows:
        ids = [
            setting_id(composed.config)
            for composed in settings(PaperRow({}, {}, row["setting"]), _composer)
        ]
        row["config_ids"] = " ".join(ids)
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


if __name__ == "__main__":
    for path in FILES:
        path.write_text(identified(path.read_text(encoding="utf-8")), encoding="utf-8")
