"""What a user in a hurry types, and an attacker.

One line that says what is wrong, exit status 2, nothing left behind.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dks.config.checks import RANGES
from dks.config.errors import LONGEST_VALUE, one_line, short
from dks.config.files import choices, groups
from dks.config.names import SHORT_NAMES
from dks.config.ranges import MOST_CELLS
from dks.config.schema import Config
from dks.sweeps import files
from tests.conftest import ROOT, sampled, start
from tests.support.program import dks

LIMIT = 3.0  # seconds that a refusal may take
# the arguments of `dks`, and what the message must name
Line = tuple[tuple[str, ...], tuple[str, ...]]


# --- arguments of which one thing is broken


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the schema and its type."""
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _bare(hint: Any) -> Any:
    """The type less `None`."""
    given = [each for each in get_args(hint) if each is not type(None)]
    return given[0] if type(None) in get_args(hint) else hint


KEYS = dict(leaves(Config))
# Words that are nothing else in Hydra's grammar and no choice of anything.
WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=12).map(lambda word: f"x{word}z")
# Anything that can be typed between quotes.
TEXTS = st.text(
    st.characters(exclude_characters="'\\$\0", exclude_categories=("Cs",)), min_size=1, max_size=150
).filter(
    lambda text: (
        not _is_number(text) and text.strip().lower() not in ("", "null", "true", "false", "???")
    )
)
LISTS = st.lists(st.integers(0, 9), max_size=3).map(lambda items: f"[{','.join(map(str, items))}]")


def _is_number(text: str) -> bool:
    try:
        float(text.strip().replace("_", ""))
    except ValueError:
        return text.strip().lower() in ("yes", "no", "on", "off", "y", "n")
    return True


def one_of_type(kind: Any) -> list[Any]:
    return [key for key, hint in KEYS.items() if _bare(hint) is kind]


@st.composite
def wrong_types(draw: Callable[..., Any]) -> Line:
    key = draw(st.sampled_from(one_of_type(int) + one_of_type(float) + one_of_type(bool)))
    kind = draw(st.sampled_from(("word", "text", "list", "dict")))
    if kind == "word":
        word = draw(WORDS)
        return ("train", f"{key}={word}"), (f"{key}={word} must be",)
    if kind == "text":
        text = draw(TEXTS)
        return ("train", f"{key}='{text}'"), (key, "must be", shown(text))
    value = draw(LISTS) if kind == "list" else "{a:1}"
    return ("train", f"{key}={value}"), (key, "must be")


def shown(text: str) -> str:
    """The beginning of a value as a message has it."""
    return one_line(text, LONGEST_VALUE)[:20].strip()


@st.composite
def out_of_range(draw: Callable[..., Any]) -> Line:
    key = draw(st.sampled_from(sorted(RANGES)))
    least, most, _ = RANGES[key]
    value = draw(st.one_of(st.integers(-(10**30), least - 1), st.integers(most + 1, 10**30)))
    number = str(float(value)) if _bare(KEYS[key]) is float else str(value)
    needs = (
        ["data=synthetic"]
        if key.endswith("_images")
        else ["aux=ap_2fc"]
        if key.startswith("aux_design")
        else []
    )
    return ("train", *needs, f"{key}={value}"), (
        f"{key}={short(number)} must be at least {least} and at most {most}",
    )


@st.composite
def fractions_for_whole_numbers(draw: Callable[..., Any]) -> Line:
    key, number = draw(st.sampled_from(one_of_type(int))), draw(st.floats(0.01, 0.99))
    return ("train", f"{key}={number}"), (f"{key}={number} must be a whole number",)


@st.composite
def not_finite(draw: Callable[..., Any]) -> Line:
    keys = sorted(
        {
            "recipe.lr",
            "recipe.gamma",
            "recipe.momentum",
            "recipe.weight_decay",
            "loss.alpha",
            "aux_design.width",
        }
    )
    key, value = draw(st.sampled_from(keys)), draw(st.sampled_from(("nan", "inf", "-inf", "1e999")))
    return ("train", f"{key}={value}"), (f"{key}={float(value)}", "must be")


@st.composite
def unknown_choices(draw: Callable[..., Any]) -> Line:
    word = draw(WORDS)
    enums = [
        key
        for key, hint in KEYS.items()
        if isinstance(_bare(hint), type) and issubclass(_bare(hint), Enum)
    ]
    key = draw(st.sampled_from([*enums, *groups(), "hydra/launcher"]))
    known = (
        choices(key)
        if key in groups()
        else [each.value for each in _bare(KEYS[key])]
        if key in KEYS
        else ["local", "slurm"]
    )
    return ("train", f"{key}={word}"), (f"{key}={word}: no such choice; choose from", *known)


@st.composite
def unknown_keys(draw: Callable[..., Any]) -> Line:
    parts = draw(st.sampled_from(sorted(KEYS))).split(".")
    parts[draw(st.integers(0, len(parts) - 1))] = draw(WORDS)
    sign = draw(st.sampled_from(("", "+", "++")))
    return ("train", f"{sign}{'.'.join(parts)}=1"), (
        next(part for part in parts if part.startswith("x")),
        "no such key",
    )


BROKEN = (
    *(
        "{}",
        "={}",
        "{}=(1",
        "{}=[1,2",
        "{}=1,,2",
        "{}={{a:1",
        "{}='a",
        "{}=ä",
        "{}=1=2",
        "{} =x y",
        "{}@=1",
        "{}=,",
        "{}=]",
    ),
    *("{}=choice()", "{}=range(a,b)", "{}=int(x)", "{}=none_such(1)"),
)


@st.composite
def broken_syntax(draw: Callable[..., Any]) -> Line:
    key, word = draw(st.sampled_from(sorted(KEYS))), draw(WORDS)
    typed = draw(st.sampled_from(BROKEN)).format(draw(st.sampled_from((key, word))))
    return ("train", *draw(st.sampled_from(((), ("-m",)))), typed), (short(typed),)


@st.composite
def nested_nonsense(draw: Callable[..., Any]) -> Line:
    depth, bracket = draw(st.integers(25, 4000)), draw(st.sampled_from("[{("))
    typed = f"{draw(st.sampled_from(sorted(KEYS)))}={bracket * depth}"
    return ("train", typed), (short(typed), "nested")


@st.composite
def conflicts(draw: Callable[..., Any]) -> Line:
    name = draw(st.sampled_from(sorted(SHORT_NAMES)))
    one, other = draw(st.lists(st.sampled_from(choices(name)), min_size=2, max_size=2, unique=True))
    line = [f"{name}={one}", f"{SHORT_NAMES[name]}={other}"]
    return ("train", *draw(st.permutations(line))), (
        f"{name}={one}",
        f"{SHORT_NAMES[name]}={other}",
        "disagree",
    )


@st.composite
def references(draw: Callable[..., Any]) -> Line:
    key, word = draw(st.sampled_from(sorted(KEYS))), draw(WORDS)
    where = draw(st.sampled_from((word, f"oc.env:{word.upper()}", f"{word}:1", f"recipe.{word}")))
    return ("train", f"{key}='${{{where}}}'"), (key, word.upper() if "env" in where else word)


@st.composite
def wrong_values_of_hydra(draw: Callable[..., Any]) -> Line:
    word = draw(WORDS)
    return draw(st.sampled_from((
        (("train", f"hydra.launcher.slots={word}"), (f"hydra.launcher.slots={word}",)),
        (("train", "hydra.mode=RUN"), ("hydra.mode=RUN",)),
        (("train", f"hydra.sweep.dir={word}"), (f"hydra.sweep.dir={word}", "runs_dir")),
        (("train", f"hydra.{word}=1"), (f"hydra.{word}", "no such key")),
        (("train", f"hydra.launcher.{word}=1"), (f"hydra.launcher.{word}", "no such key")),
        (("train", "--config-name", word), (word,)),
        (("train", "--config-dir", word), (word,)),
        (("train", f"--{word}"), (f"--{word}", "no such option")),
        (("train", "--cfg", word), ("--cfg", word, "job")),
        (("train", "--experimental-rerun", word), ("--experimental-rerun",)),
        (("train", "-m", f"seed=range(1,{MOST_CELLS * 1000})"), ("seed=range", f"{MOST_CELLS:,}")),
        (("train", "-m", "seed=shuffle(range(0,1e12))"), ("seed=shuffle", f"{MOST_CELLS:,}")),
        (("train", "-m", "seed=range(1,1000)", "recipe.epochs=range(1,1000)"), ("seed=", "recipe.epochs=", f"{MOST_CELLS:,}")),  # noqa: E501
        (("train", "-m", "seed=interval(0,1)"), ("seed=interval(0,1)", "name the values")),
        (("train", "-m", "seed=range(3,3)"), ("seed=range(3,3)", "nothing to sweep over")),
        (("train", "-m", f"backbone=glob({word}*)"), (f"backbone=glob({word}*)", "nothing to sweep over")),  # noqa: E501
    )))  # fmt: skip


READING = st.sampled_from(
    (
        ("table",),
        ("figure",),
        ("report",),
        ("sweep", "status"),
        ("sweep", "cancel"),
        ("sweep", "retry"),
    )
)
EVERY = st.one_of(
    READING,
    st.sampled_from(
        (
            ("sweep", "run"),
            ("sweep", "plan"),
            ("evaluate",),
            ("export",),
            ("sync",),
            ("bench",),
            ("doctor",),
        )
    ),
)


@st.composite
def wrong_commands(draw: Callable[..., Any]) -> Line:
    word, text = draw(WORDS), draw(TEXTS.filter(lambda text: not text.startswith("-")))
    number = draw(st.sampled_from(("-1", "1.5", "x", "1" * 30, "nan", "")))
    return draw(st.one_of(
        READING.map(lambda command: ((*command, text), (shown(text).split("'")[0],))),
        READING.map(lambda command: ((*command, f"../{word}"), (word, "no sweep"))),
        st.just((("sweep", "run", word), (word, "no sweep", "choose from", "table1"))),
        st.just((("sweep", "plan", word), (word, "no sweep", "choose from", "table1"))),
        EVERY.map(lambda command: ((*command, "a", f"--{word}"), (f"--{word}",))),
        st.just(((word,), (word, "train", "sweep"))),
        st.just((("sweep", word), (word, "run", "status"))),
        st.just((("table", "table1", "--format", word), ("--format", word, "terminal", "csv"))),
        st.just((("table", "table1", "--epoch", word), ("--epoch", word, "last", "best"))),
        st.just((("table", "table1", "--store", word), (word, "sqlite"))),
        st.just((("figure", "table1", "--kind", word), ("--kind", word, "curves", "cost"))),
        st.just((("report", "table1", "--output", "/dev/null/x"), ("--output", "/dev/null"))),
        st.just((("report", "table1", "--output", "."), ("--output", "folder"))),
        st.just((("sweep", "run", "table1", "--launcher", word), ("--launcher", word, "local", "slurm"))),  # noqa: E501
        st.just((("sweep", "run", "table1", "--retries", number), ("--retries", number, "whole number"))),  # noqa: E501
        st.just((("sweep", "run", "table1", "--max-failures", number), ("--max-failures", number, "whole number"))),  # noqa: E501
        st.just((("sweep", "run", "methods", f"{word}=1"), (word, "no such key"))),
        st.just((("sweep", "plan", "methods", f"data={word}"), (f"data={word}", "no such choice", "digits"))),  # noqa: E501
        st.just((("sweep", "run", "methods", f"seed={word}"), (f"seed={word}", "whole number"))),
        st.just((("sweep", "status", "methods", f"seed=[{word}"), (f"seed=[{word}",))),
        st.just((("evaluate", word), (f"no run {word} in runs",))),
        st.just((("evaluate", f"../../{word}"), (word, "CELL_ID"))),
        st.just((("evaluate", "0123456789ab", "--device", word), ("--device", word, "cuda"))),
        st.just((("evaluate", "0123456789ab", "--batch-size", number), ("--batch-size", number, "whole number"))),  # noqa: E501
        st.just((("evaluate", "0123456789ab", "--runs-dir", "/dev/null"), ("--runs-dir", "/dev/null"))),  # noqa: E501
        st.just((("evaluate", "--weights", word, "--backbone", word, "--images", "."), (word, "no such choice", "resnet18"))),  # noqa: E501
        st.just((("evaluate", "--weights", word, "backbone=resnet8", f"data={word}"), (f"data={word}", "no such choice"))),  # noqa: E501
        st.just((("export", word, "--format", "onnx"), (f"no run {word} in runs",))),
        st.just((("export", "0123456789ab", "--format", word), ("--format", word, "safetensors"))),
        st.just((("sync", word), (word, "no sweep"))),
        st.just((("sync", "--store", word), (word, "sqlite"))),
        st.just((("bench", word), (word, "no such benchmark", "step"))),
        st.just((("bench", "--device", word), ("--device", word, "cuda"))),
        st.just((("doctor", f"data={word}"), (f"data={word}", "no such choice", "digits"))),
        st.just((("doctor", f"seed={word}"), (f"seed={word}", "whole number"))),
        st.just((("doctor", f"{word}=1"), (word, "no such key"))),
        st.just((("doctor", word), (word, "KEY=VALUE"))),
    ))  # fmt: skip


KINDS = (
    *(wrong_types, out_of_range, fractions_for_whole_numbers, not_finite, unknown_choices),
    *(unknown_keys, broken_syntax, nested_nonsense, conflicts, references),
    *(wrong_values_of_hydra, wrong_commands),
)


# --- how they end


def refused(folder: Path, arguments: tuple[str, ...], named: tuple[str, ...]) -> None:
    """The command ends as every wrong one should."""
    began = time.process_time()
    status, out, err = dks(*arguments, folder=folder)
    seconds = time.process_time() - began
    told = f"dks {arguments}: {err}"
    assert status == 2, told
    assert out == "", told
    assert err.startswith("error: "), told
    assert err.endswith("\n") and err.count("\n") == 1, told
    assert err[:-1].isprintable() and len(err) < 5000, told
    assert "Traceback" not in err, told
    assert [name for name in named if name not in err] == [], told
    assert list(folder.iterdir()) == [], told
    assert seconds < LIMIT, told


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch  # what takes long is imported before anything is timed  # noqa: F401

    folder = tmp_path_factory.mktemp("empty")
    for arguments in (
        ("train", "seed=-1"),
        ("table", "x"),
        ("sync",),
        ("evaluate", "0123456789ab"),
    ):
        dks(*arguments, folder=folder)
    return folder


def try_all(folder: Path, kind: Callable[[], st.SearchStrategy[Line]], examples: int) -> set[Line]:
    """Generate lines of a kind; those that were tried."""
    tried = set[Line]()

    @given(line=kind())
    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def each(line: Line) -> None:
        tried.add(line)
        refused(folder, *line)

    each()
    return tried


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_one_line_that_names_it_and_leaves_nothing(empty: Path, kind: Any) -> None:
    assert try_all(empty, kind, 2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_wrong_is_one_line_that_names_it_and_leaves_nothing(
    empty: Path, kind: Any
) -> None:
    """With --full more than 500 different lines, for all kinds together.

    Of one kind there are only 24.
    """
    lines = try_all(empty, kind, sampled(66, 5))
    assert len(lines) >= sampled(24 if kind is not_finite else 44, 4)


# What was found by trying, kept for itself.
FOUND: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "recipe.epochs=99999999999999999999999999"): (
        "recipe.epochs=99999999999999999999999999",
        "1000000",
    ),
    ("train", "+compute.nonsense=1"): ("compute.nonsense", "no such key"),
    ("train", "runs_dir=''"): ("runs_dir=", "empty"),
    ("train", "runs_dir='a\u202eb'"): ("runs_dir=a\\u202eb",),
    ("train", "aux_design.width=1e30"): ("aux_design.width=1e+30", "100"),
    ("train", "backbone.branches.c2.stages=[{blocks:-1,width:16}]"): (
        "backbone.branches.c2.stages[0].blocks=-1",
    ),
    ("train", "teacher=checkpoint", "kd_teacher.cell=../../etc", "kd_teacher.students=[c1]"): (
        "kd_teacher.cell=../../etc",
    ),
    ("train", "backbone=" + "x" * 5000): ("xxx ... xxx", "too long"),
    ("train", "hydra.mode=RUN"): ("hydra.mode=RUN",),
    ("train", "seed='${oc.env:HOME}'"): ("seed=${oc.env:HOME}", "whole number"),
    ("train", "backbone.depth=':\n'"): ("backbone.depth=:", "must be a whole number"),
    ("train", "aux=[]"): ("aux=[]", "takes one choice", "narrow"),
    ("train", "backbone=null"): ("backbone=null: backbone takes one choice", "resnet8"),
    ("train", "-m", "teacher=none,null"): (
        "teacher=none,null: teacher takes one choice",
        "checkpoint",
    ),
    ("sweep", "plan", "methods", "data=null"): ("data=null: data takes one choice", "digits"),
    ("train", "hydra/launcher=null"): (
        "hydra/launcher=null: hydra/launcher takes one choice",
        "local, slurm",
    ),
    ("train", "hydra.sweeper.params.seed='1,2'"): (
        "hydra.sweeper.params",
        "a sweep is typed, as in -m seed=1..5",
    ),
    ("doctor", "seed=1,2"): ("seed=1,2: a configuration has one value for each key",),
    ("train", "hydra.searchpath=[runs]"): ("hydra.searchpath=[runs]", "conf/GROUP/NAME.yaml"),
    ("train", "seed=range(1,4)"): ("seed=range(1,4)", "python train.py -m 'seed=range(1,4)'"),
    ("train", "hydra/sweeper=basic"): ("hydra/sweeper=basic", "drop it"),
    ("train", "hydra.job.chdir=true"): ("hydra.job.chdir=true", "drop it"),
    ("train", "+hydra.job.env_set.A=b"): ("hydra.job.env_set.A=b", "NAME=VALUE dks train"),
    ("train", "aux=ours,shallow"): ("aux=ours,shallow", "python train.py -m aux=ours,shallow"),
    ("train", "seed=1..3"): ("seed=1..3", "python train.py -m seed=1..3"),
    ("train", "backbone=glob(resnet*)"): ("backbone=glob(resnet*)", "needs -m"),
    ("train", "-m", "seed=3..1"): ("seed=3..1 is no range", "1..5"),
    ("train", "-m", "seed=7,1..999999"): ("seed=7,1..999999 has more than", f"{MOST_CELLS:,}"),
    ("train", "-cd", ".", "-cn", "config", "seed=9"): ("--config-dir .", "conf/GROUP/NAME.yaml"),
    ("train", "--config-path", "/tmp"): ("--config-path /tmp", "conf/GROUP/NAME.yaml"),
    ("train", "--config-name", "config"): ("--config-name config", "+experiment=NAME"),
    ("train", "--package", "recipe"): ("--package", "--cfg job"),
    ("sweep", "status", "aux-strategy", "aux=ours"): ("aux-strategy", "no named sweep"),
    ("sweep", "run", "quickstart", "hydra.launcher.slots=0"): ("hydra.launcher.slots=0",),
    ("sweep", "run", "quickstart", "--launcher", "slurm", "hydra.launcher.nodes=0"): (
        "hydra.launcher.nodes=0",
    ),
    ("table", "methods", "--output", "--json"): ("--output",),
    ("sweep",): ("list", "retry"),
    (): ("train", "sweep"),
}


@pytest.mark.rest_slow(5)
@pytest.mark.parametrize("arguments", FOUND)
def test_what_was_found_once_stays_refused(empty: Path, arguments: tuple[str, ...]) -> None:
    refused(empty, arguments, FOUND[arguments])


@pytest.mark.slow
def test_a_traceback_is_shown_to_whoever_asks_and_the_line_stays_the_same(empty: Path) -> None:
    for command in (("train", "seed=x"), ("table", "nope")):
        plain = dks(*command, folder=empty)
        for asked in ((*command, "--debug"), (command[0], "--debug", *command[1:])):
            status, _, told = dks(*asked, folder=empty)
            assert status == plain.status == 2
            assert told.startswith("Traceback") and told.endswith(plain.err)
    assert dks("train", "seed=x", folder=empty, HYDRA_FULL_ERROR="1").err.startswith("Traceback")


def test_options_stand_where_one_likes(empty: Path) -> None:
    status, out, _ = dks("train", "seed=3", "--cfg", "job", "recipe.epochs=7", folder=empty)
    assert status == 0
    assert "seed: 3" in out and "epochs: 7" in out
    line = ("train", "-p", "recipe", "--cfg", "job", "recipe.epochs=7")
    status, out, _ = dks(*line, folder=empty)
    assert status == 0 and out.startswith("# @package recipe\nepochs: 7\n")
    assert dks("train", "-p", "nothing", "--cfg", "job", folder=empty)[:2] == (2, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["-m dks train backbone=resnet9", f"{ROOT}/train.py -m seed=1,2 recipe.epochs=0"]
)
def test_a_process_of_its_own_ends_the_same(tmp_path: Path, line: str) -> None:
    process = start(line.split(), tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sweeps for this test alone."""
    monkeypatch.setattr(files, "declarations", lambda folder: tmp_path)
    return tmp_path


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe\x00", "mine.yaml"),
        (b"grids: [{seed: !!python/object/apply:os.system [touch made]}]", "mine.yaml"),
        (b"grids: [{seed: 1..999999999}]", "seed: 1..999999999 makes"),
        (b"grids: [{seed: 1..1000, recipe.epochs: 1..1000}]", "grid 1 makes 1,000,000 cells"),
        (b"grids: [{seed: 1.." + b"9" * 5000 + b"}]", "is no range"),
        (b"grids: " + b"[" * 3000, "mine.yaml"),
        (b"grids: [{seed: '\\x1b[31m'}]\nevil\x1b: 1", "mine.yaml"),
        (b"grids: [{seed: ${oc.env:HOME}}]\ntable: {rows: [nothing]}", "mine.yaml"),
    ],
)
def test_a_sweep_file_of_nonsense_is_refused_with_its_name(
    sweeps: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes, named: str
) -> None:
    (sweeps / "mine.yaml").write_bytes(content)
    refused(tmp_path_factory.mktemp("empty"), ("sweep", "plan", "mine"), (named,))
