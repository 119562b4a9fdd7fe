"""The command that a person typed, for the record of what it set going."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dks.config.secrets import without_password

_WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")  # options of the interpreter


def command_line(arguments: Sequence[str] | None = None) -> str:
    """As it can be typed again: `python train.py ...`, `dks sweep run ...`.

    Passwords in it are masked.

    Args:
        arguments: of the whole process, the interpreter first; None: of this one. Not `sys.argv`,
            in which `dks sweep` puts what it asks of Hydra.
    """
    rest = list(sys.orig_argv if arguments is None else arguments)[1:]
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c", "-"):
        del rest[: 2 if rest[0] in _WITH_VALUE else 1]
    if rest and not rest[0].startswith("-"):
        script = Path(rest[0])
        rest[:1] = ["python", script.name] if script.suffix == ".py" else [script.name]
    else:
        rest.insert(0, "python")
    return shlex.join(without_password(each) for each in rest)


def command_with(changed: Mapping[str, str], processes: int = 1) -> str:
    """What was typed, with these keys set so, and under torchrun where several processes train
    together.
    """
    typed = shlex.split(command_line())
    kept = [each for each in typed if each.partition("=")[0] not in changed]
    words = [*kept, *(f"{key}={value}" for key, value in changed.items())]
    if processes > 1:
        program = words[1:] if words[0] == "python" else ["-m", *words]
        words = ["torchrun", f"--nproc-per-node={processes}", *program]
    return shlex.join(words)
