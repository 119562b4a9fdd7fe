"""Write the frozen facts of this folder with the program that is installed: `python tests/golden/make.py [FILE ...]`

They were written by commit c624696, in its checkout and its environment, and say what must not change; README.md has the
commands. `tests/system/test_golden.py` collects the same facts and compares.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from golden import ids, statuses  # noqa: E402

# The file -> what collects its text, given an empty folder to work in.
FAST: dict[str, Callable[[Path], str]] = {
    "ids.txt": lambda folder: ids.ids(ids.FAST, folder),
    "plans.txt": lambda folder: ids.plans(ids.SHIPPED_FAST, folder),
    "statuses.txt": statuses.wrong_and_help,
}
SLOW: dict[str, Callable[[Path], str]] = {
    "more_ids.txt": lambda folder: ids.ids(ids.SLOW, folder),
    "more_plans.txt": lambda folder: ids.plans(ids.SHIPPED_SLOW, folder),
    "statuses_of_done.txt": statuses.done,
    "statuses_of_runs.txt": statuses.runs,
}
FACTS = FAST | SLOW


def main() -> None:
    """Write the files that are named, or all."""
    for name in sys.argv[1:] or FACTS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
            (Path(folder) / "here").mkdir()
            (HERE / name).write_text(FACTS[name](Path(folder) / "here"))
            print(name)


if __name__ == "__main__":
    main()
