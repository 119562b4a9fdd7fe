"""The hash of the code that numbers depend on.

What changes it and what does not, and which codes count as one.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dks.config.registry import VARIABLE
from dks.machine import code
from tests.conftest import ROOT

# One of everything that versions of Python have written differently, or may.
EVERYTHING = '''
"""doc"""
import a.b as c
class A(B[int], metaclass=M):
    """d"""
    x: int = 1_000
    "attr doc"
    async def f(self, *a, k=1e-3, **b) -> str:
        """x"""
        return f"{a!r:>{k}.2f} {b=} {x:}" + u"\\u1c89\\xe9" f"{k:{a}{b}}" "" f""
@d
def g(): "only"
match x:
    case {"a": [1, *_], **r} if (y := -0.0): pass
try: pass
except* E as e: raise X from e
with (a as b, c): del q[1:2, ...]
lambda: (yield)
z = ["", b"\\x00", 1j, ..., None, True, {*s}, not a, a if b else c, [i for i in j if k async for l in m]]
global_ = 10**40
'''  # noqa: E501
# computed with Python 3.11.2, 3.12.1 and 3.13.0
HASH = "ef0ba5fab7b7cd8e3d02a0ac8b0def766374091dd98d4a0464244a4bc52499bf"


def forget() -> None:
    for function in (code._own, code._digest, code._of_package, code._beside, code._equal):
        function.cache_clear()


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What one test has seen no other one finds."""
    forget()
    yield
    forget()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the shape of ours, with a module in each place, in place of it."""
    folder = tmp_path / "dks"
    for name in code.SOURCES:
        file = folder / name if name.endswith(".py") else folder / name / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"value = {len(name)}\n")
    monkeypatch.setattr(code, "_PACKAGE", folder)
    return folder


def now(*extensions: tuple[str, str]) -> str:
    """Today's code, as a process that starts now finds it."""
    forget()
    return code.current(extensions)


def text_of(source: str) -> str:
    return code._text(ast.parse(textwrap.dedent(source)))


def test_formatting_comments_and_docstrings_are_no_other_code(package: Path) -> None:
    file = package / "objectives" / "losses.py"
    file.write_text('"""What it is."""\n\n\ndef f(x):\n    """Twice."""\n    return 2 * x + 1_0\n')
    before = now()
    assert re.fullmatch("[0-9a-f]{64}", before)
    file.write_text(
        "# of another author\n'''Another text.'''\ndef f( x ):\n  'Twice, and more.'\n  return "
        "(2*x) + 10 # ten\n"
    )
    assert now() == before
    file.write_text('"""What it is."""\n\n\ndef f(x):\n    """Twice."""\n    return 2 * x + 11\n')
    assert now() != before


def test_every_module_of_the_packages_counts_and_no_other(package: Path) -> None:
    seen = [now()]
    for name in (
        "models/new.py",
        "training/parts/deeper.py",
        "data/__init__.py",
        "extend.py",
        "machine/world.py",
    ):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("value = 'another'\n")
        seen.append(now())
    assert len(set(seen)) == 6
    (package / "models" / "new.py").rename(package / "models" / "newer.py")
    assert now() not in seen, "its name counts"
    (package / "models" / "newer.py").rename(package / "models" / "new.py")
    for name in ("results/new.py", "machine/memory.py", "models/notes.txt", "renamed.py"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("value = 'another'\n")
    assert now() == seen[-1]


def test_what_computes_imports_nothing_of_ours_that_may_compute_and_does_not_count() -> None:
    """A package that comes to compute must be named in `SOURCES`.

    These describe, record, look at machines, show or refuse.
    """
    silent = ("config", "machine", "runs", "tracking")
    counted = {name.removesuffix(".py").replace("/", ".") for name in code.SOURCES}
    for name in code.SOURCES:
        place = ROOT / "dks" / name
        for path in [place] if place.suffix else sorted(place.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dks"):
                    names = [f"{node.module}.{each.name}".split(".", 1)[1] for each in node.names]
                    others = [
                        each
                        for each in names
                        if not each.startswith((*counted, *silent)) and each != "__version__"
                    ]
                    assert others == [], f"{path} imports {others}"


def test_a_module_that_is_no_python_counts_by_its_bytes(package: Path) -> None:
    (package / "models" / "draft.py").write_text("def f(:\n")
    before = now()
    (package / "models" / "draft.py").write_text("def g(:\n")
    assert now() != before


def test_the_hash_is_that_of_other_versions_of_python() -> None:
    assert hashlib.sha256(text_of(EVERYTHING).encode()).hexdigest() == HASH


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = [None, 1]", "x = [1, None]"),
        ("x = ''", "x = 'a'"),
        ("f(a=1)", "f(**a)"),
        ("def f(a, /, b): pass", "def f(a, b): pass"),
        ("x = 'a', ''", "x = 'a',"),
        ("x = 1.0", "x = 1"),
        ("from a import b", "from .a import b"),
    ],
)
def test_what_means_something_else_is_another_text(one: str, other: str) -> None:
    assert text_of(one) != text_of(other)


def test_codes_that_were_proven_equal_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, extra = ("a" * 64, "b" * 64, "c" * 64, "e" * 64)
    file = tmp_path / "equal_code.txt"
    file.write_text(f"# moved into a package\n{a} {b}  # proven by hand\n\n")
    monkeypatch.setattr(code, "EQUAL", file)
    assert [code.canonical(each) for each in (a, b, c, None)] == [a, a, c, "unknown"]
    assert code.canonical(f"{b}+{extra}") == f"{a}+{extra}" != code.canonical(b)
    assert code.short(f"{b}+{extra}") == f"{'b' * 12}+{'e' * 12}"


def test_the_file_of_equal_codes_holds_groups_of_hashes() -> None:
    for line in code.EQUAL.read_text().splitlines():
        group = line.partition("#")[0].split()
        assert len(group) != 1 and all(re.fullmatch("[0-9a-f]{64}", each) for each in group), line


# --- extensions

NET = """
    from dks import extend
    from helper import width  # beside it

    @extend.backbone("mynet", taps={})
    def mynet(num_classes):
        return width
"""


@pytest.mark.slow
def test_an_extension_and_what_it_imports_from_beside_it_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "net.py").write_text(textwrap.dedent(NET))
        (folder / "helper.py").write_text("import deep.er\nwidth = 4\n")
        (folder / "deep").mkdir()
        (folder / "deep" / "er.py").write_text("a = 1\n")
        (folder / "stranger.py").write_text("a = 1\n")
        (folder / "dks").mkdir()
        (folder / "dks" / "tables.py").write_text("a = 1\n")
    mynet = ("backbone", "mynet")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other" / "net.py"))
    elsewhere = now(mynet)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "one" / "net.py"))
    own, _, of_extension = now(mynet).partition("+")
    assert own == now() and re.fullmatch("[0-9a-f]{64}", of_extension)
    assert now(mynet) == elsewhere, "wherever the files lie"
    assert list(code.extension_files([mynet])) == ["net.py", "helper.py", "deep/er.py"]
    (tmp_path / "one" / "helper.py").write_text("import deep.er  # a remark\nwidth = 4\n")
    (tmp_path / "one" / "stranger.py").write_text("a = 2\n")
    assert now(mynet) == elsewhere
    seen = {elsewhere}
    for name, text in (("helper.py", "import deep.er\nwidth = 5\n"), ("deep/er.py", "a = 2\n")):
        (tmp_path / "one" / name).write_text(text)
        seen.add(now(mynet))
    assert len(seen) == 3


def test_all_modules_of_a_package_of_extensions_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "mynets"
    package.mkdir(parents=True)
    for name in ("__init__.py", "net.py", "parts.py"):
        (package / name).write_text("a = 1\n")
    information = tmp_path / "site" / "mynets-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mynets\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[dks.extensions]\nbackbone.theirs = mynets.net\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv(VARIABLE, f"{os.pathsep}")  # a catalogue of its own
    before = now(("backbone", "theirs"))
    assert list(code.extension_files([("backbone", "theirs")])) == [
        "mynets/__init__.py",
        "mynets/net.py",
        "mynets/parts.py",
    ]
    (package / "parts.py").write_text("a = 2\n")
    assert now(("backbone", "theirs")) != before
    assert now(("backbone", "gone")) not in (before, now()), "one that is missing is not today's"
