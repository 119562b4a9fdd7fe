"""Write files of facts with the program that is installed: `python tests/golden/make.py [FILE ...]`

README.md says with which program.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind the program that is installed

from tests.golden.facts import FACTS, HERE, of_today

for name in sys.argv[1:] or FACTS:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        (here := Path(folder) / "here").mkdir()
        (HERE / name).write_text(of_today(name, here))
        print(name)
