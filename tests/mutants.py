"""Mutation testing: do the fast tests notice small faults in the code that decides results?

    python -m tests.mutants --count 400 [--seed 0] [--only dks/training/schedule.py]

Takes a sample of mutants, as many of each module as its share of all (one at least), runs for each
the fast tests that belong to the module on a copy of the repository, and prints the share that was
killed, with a 95 % Wilson interval, and the survivors. A mutant changes one operator, number,
argument or statement. The exit status is 1 where the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("conf", "dks", "hydra_plugins", "sweeps", "tests")
SECONDS = 300  # a mutant whose tests take longer is killed: it hangs
# Module -> the fast tests that belong to it.
TESTS = {
    "dks/objectives/cross_entropy.py": ["objectives/test_synergy.py"],
    "dks/objectives/distillation.py": ["objectives/test_distillation.py", "config/test_methods.py"],
    "dks/objectives/objective.py": ["training/test_step.py", "config/test_methods.py"],
    "dks/objectives/synergy.py": ["objectives/test_synergy.py"],
    "dks/config/identity.py": ["config/test_identity.py", "training/test_schedule.py"],
    "dks/sweeps/points.py": ["sweeps/test_spec.py"],
    "dks/training/schedule.py": ["training/test_schedule.py"],
    "dks/training/checkpoint.py": ["runs/test_durability.py", "training/test_resume.py"],
    "dks/results/statistics.py": ["results/test_statistics.py", "results/test_tables.py"],
    "dks/runs/states.py": ["runs/test_states.py", "runs/test_ledger.py"],
    "dks/runs/journal.py": ["runs/test_durability.py", "runs/test_records.py"],
    "dks/data/batches.py": ["data/test_data.py"],
    "dks/data/label_noise.py": ["data/test_data.py", "data/test_holdout.py"],
    "dks/models/branches.py": ["models/test_branches.py", "models/test_models.py"],
}
_PAIRS = (
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.And, ast.Or),
)
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    **{one: other for pair in _PAIRS for one, other in (pair, pair[::-1])},
    **dict.fromkeys((ast.FloorDiv, ast.Mod, ast.Pow), ast.Mult),
}
Mutation = tuple[int, Callable[[], object]]  # its line, and what changes the tree


def mutations(tree: ast.Module) -> Iterator[Mutation]:
    """Every change that there is, in a fixed order."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Compare(ops=[op]) if type(op) in OTHER:
                yield line, lambda node=node, op=op: node.ops.__setitem__(0, OTHER[type(op)]())
            case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in OTHER:
                yield line, lambda node=node, op=op: setattr(node, "op", OTHER[type(op)]())
            case ast.Constant(value=bool(value)):
                yield line, lambda node=node, value=value: setattr(node, "value", not value)
            case ast.Constant(value=int(value) | float(value)):
                yield line, lambda node=node, value=value: setattr(node, "value", value + 1)
            case ast.If(test=test) | ast.IfExp(test=test):
                yield (
                    line,
                    lambda node=node, test=test: setattr(
                        node, "test", ast.UnaryOp(ast.Not(), test)
                    ),
                )
            case ast.Call(args=[first, second, *_]):
                yield (
                    line,
                    lambda node=node, both=(second, first): node.args.__setitem__(slice(2), both),
                )
            case ast.Expr(value=ast.Call()):
                yield line, lambda node=node: setattr(node, "value", ast.Constant(None))


def passes(folder: Path, module: str) -> bool:
    """Do the tests of a module pass on this copy?"""
    tests = [f"tests/{name}" for name in TESTS[module]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-m", "not slow", *tests]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        return not subprocess.run(
            command, cwd=folder, env=env, capture_output=True, timeout=SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def main() -> int:
    """Run the sample."""
    parser = argparse.ArgumentParser(description="Mutation testing of what decides results.")
    parser.add_argument("--count", type=int, default=400, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", nargs="*", default=list(TESTS), choices=list(TESTS))
    given = parser.parse_args()
    sources = {module: (ROOT / module).read_text() for module in given.only}
    sizes = {name: len([*mutations(ast.parse(text))]) for name, text in sources.items()}
    draw, count, survivors = random.Random(given.seed), 0, list[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in COPIED:
            shutil.copytree(ROOT / each, folder / each)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for module, source in sources.items():
            if not passes(folder, module):
                print(f"{module}: its tests fail without a mutant")
                return 1
            wanted = min(
                sizes[module], max(1, round(given.count * sizes[module] / sum(sizes.values())))
            )
            for number in sorted(draw.sample(range(sizes[module]), wanted)):
                tree, count = ast.parse(source), count + 1
                line, change = [*mutations(tree)][number]
                change()
                (folder / module).write_text(ast.unparse(ast.fix_missing_locations(tree)))
                if survived := passes(folder, module):
                    survivors.append(f"{module}:{line} mutant {number} of {sizes[module]}")
                print(f"{module}:{line}", "survived" if survived else "killed", flush=True)
            (folder / module).write_text(source)
    killed = count - len(survivors)
    low, high = wilson(killed, count)
    print(
        f"{killed} of {count} killed ({killed / count:.1%}; 95 % interval {low:.1%} to {high:.1%})"
    )
    print(*survivors, sep="\n")
    return 0


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, wide = successes / n, z * z / n
    middle = (share + wide / 2) / (1 + wide)
    half = z / (1 + wide) * (share * (1 - share) / n + wide / (4 * n)) ** 0.5
    return middle - half, middle + half


if __name__ == "__main__":
    sys.exit(main())
