"""The documentation.

Every block of code in it is run or checked, what is generated is complete, and the site builds.

Blocks with a title (```` ```bash title="on a cluster" ````) need what a test has not, or belong
into the file of that name; they are read and composed, not run. The bash blocks of the tutorial
without one are run, one after another.
"""

from __future__ import annotations

import configparser
import dataclasses
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from dks.cli import main as cli
from dks.config import files as config_files
from dks.config.compose import Composer, compose_here, register_schema
from dks.config.files import declarations
from dks.config.identity import is_execution_only
from dks.config.overrides import checked
from dks.config.schema import Config
from dks.sweeps import files
from dks.sweeps.plan import Plan, plan
from dks.sweeps.spec import Grid, expand, grid_of
from tests.conftest import ROOT, sampled
from tests.support import published
from tests.support.command_line import commands, example_lines, parsed
from tests.system.test_report_page import CHROMIUM, DRIVER, browser  # noqa: F401  (a fixture)

sys.path.insert(0, str(ROOT / "docs" / "generator"))

import command_reference
import config_reference
import data_flow
import paper_numbers

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"", "bash", "ini", "nginx", "python", "text", "toml", "yaml"}
PARSER = OverridesParser.create()
# Words that stand for something of the reader's.
PLACEHOLDERS = {
    "CELL_ID": "0123456789ab",
    "FILE": "weights.pt",
    "FOLDER": "FOLDER",
    "HOST": "mlflow.example.org",
    "URI": "sqlite:///x.db",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), []
    for fence in re.finditer(
        r'^```(\w*)(?: title="([^"]*)")?(.*)\n((?:.*\n)*?)```$', text, re.MULTILINE
    ):
        assert not fence[3].strip(), f"{page}: what is {fence[3]!r} behind a fence?"
        found.append(
            Block(page, text.count("\n", 0, fence.start()) + 1, fence[1], fence[2], fence[4])
        )
    assert text.count("\n```") + text.startswith("```") == 2 * len(found), (
        f"{page}: a fence is open, or indented"
    )
    return found


# The examples of every help are read as if a page had them.
HELP = [
    Block(ROOT / "dks" / "cli" / "main.py", 1, "", None, "\n".join(example_lines(command)))
    for command in commands().values()
]
ALL = [*(block for page in PAGES for block in blocks(page)), *HELP]


def lines(block: Block) -> list[str]:
    """The commands of this project in a block, without what stands behind them."""
    joined = block.text.replace("\\\n", " ").splitlines()
    starts = ("dks ", "python train.py", "torchrun ")
    typed = (
        re.split(r"\s{2,}|\s#", line.strip())[0]
        for line in joined
        if line.strip().startswith(starts)
    )
    return [line for line in typed if "..." not in line and block.language in ("", "bash")]


# where it stands first
COMMANDS = {line: str(block) for block in reversed(ALL) for line in reversed(lines(block))}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of someone who reads the pages.

    Images, Parquet files, and the files that pages say to write.
    """
    import pandas as pd

    folder = tmp_path_factory.mktemp("workplace")
    for name in ("photos", "FOLDER"):
        for place in (f"{split}/{label}" for split in ("train", "val") for label in ("cat", "dog")):
            (folder / name / place).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (16, 16), (90 * number, 0, 0)).save(
                    folder / name / place / f"{number}.png"
                )
    pixels = (folder / "FOLDER" / "train" / "cat" / "0.png").read_bytes()
    rows = [{"image": {"bytes": pixels, "path": None}, "label": label} for label in (0, 1)]
    for split in ("train", "test"):
        pd.DataFrame(rows).to_parquet(folder / "FOLDER" / f"{split}-0.parquet")
    for part in ("conf", "sweeps"):
        shutil.copytree(ROOT / part, folder / part)
    for block in ALL:
        if (block.title and block.title.startswith(("conf/", "sweeps/"))) or str(
            block.title
        ).endswith(".py"):
            (folder / str(block.title)).write_text(block.text)
    patch = pytest.MonkeyPatch()
    patch.setenv(
        "DKS_EXTENSIONS", os.pathsep.join(sorted(str(path) for path in folder.glob("*.py")))
    )
    patch.chdir(folder)
    for module in (config_files, files, sys.modules["dks.config.compose"]):
        patch.setattr(
            module,
            "declarations",
            lambda name: folder / name if (folder / name).exists() else ROOT / name,
        )
    yield folder
    patch.undo()


@cache
def composer() -> Composer:
    """One for all, for it keeps what it has composed. Only inside of the workplace."""
    return Composer(compose_here)


def planned(grid: Grid) -> Plan:
    return plan(grid, composer(), absent_ok=True)


def composes(overrides: list[str], launcher: str | None = None, several: bool = True) -> None:
    """What a run or a sweep would do before anything is launched.

    Options of Hydra and the launcher are composed, too.
    """
    hydra = [item for item in overrides if item.startswith("hydra")] + (
        [f"hydra/launcher={launcher}"] if launcher else []
    )
    if hydra:
        register_schema()
        with initialize_config_dir(str(declarations("conf")), version_base="1.3"):
            compose("config", hydra, return_hydra_config=True)
    ours = [item for item in overrides if not item.startswith("hydra")]
    planned(expand(PARSER.parse_overrides(checked(ours, several))))


@pytest.mark.rest_slow(8)
@pytest.mark.parametrize(
    "line",
    [pytest.param(line, id=f"{place}: {line}") for line, place in reversed(COMMANDS.items())],
)
def test_every_command_on_a_page_would_be_taken(
    line: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as one who uses a server has it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    for word, value in PLACEHOLDERS.items():
        if "data=imagenet" in line and word == "FOLDER":
            value = "elsewhere"
        line = re.sub(rf"\b{word}\b", value, line)
    words = shlex.split(line)
    if words[0] == "torchrun":
        del words[: words.index("train.py") - 1]
        words[0] = "python"
    if words[:2] in (["python", "train.py"], ["dks", "train"]):
        options = {"-m", "--help", "--cfg", "job"}
        composes([word for word in words[2:] if word not in options], several="-m" in words)
        return
    given = parsed(words[1:]).params
    overrides = list(given.get("overrides", ()))
    if words[1] == "doctor":
        composes(overrides)
    elif given.get("name", "NAME") != "NAME":
        hydra = [item for item in overrides if item.startswith("hydra")]
        composes(hydra, given.get("launcher"))
        grid = grid_of(
            files.read(given["name"]), [item for item in overrides if item not in hydra], PARSER
        )
        grid = next(iter(grid.parts), grid)
        planned(
            dataclasses.replace(grid, points=grid.points[:1], choices=(), files=())
        )  # all of it: tests/sweeps/test_files.py


def test_blocks_are_in_a_language_that_is_checked_here() -> None:
    assert {block.language for block in ALL} <= LANGUAGES
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "bash"], ids=str)
def test_bash_blocks_are_bash(block: Block) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.language == "python" for b in blocks(page))],
    ids=lambda p: p.stem,
)
def test_python_blocks_run_one_after_another(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    python = [block for block in blocks(page) if block.language == "python"]
    if any('open("table3")' in block.text for block in python):
        published.publish(tmp_path, "table3")
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in python:
        code = compile("\n" * block.line + block.text, str(page), "exec")
        if block.title is None:
            exec(code, namespace)


@pytest.mark.rest_slow(1)
@pytest.mark.parametrize("block", [block for block in ALL if block.language == "yaml"], ids=str)
def test_yaml_blocks_compose(block: Block, workplace: Path) -> None:
    content = OmegaConf.to_container(OmegaConf.create(block.text))
    assert isinstance(content, dict)
    if block.title and block.title.startswith("conf/"):
        _, group, name = Path(block.title).with_suffix("").parts
        composes([f"{group}={name}"])
        return
    imagenet = {"data": "imagenet", "backbone": "resnet18", "seed": 1}
    if "grids" not in content and "include" not in content:
        if content.keys() <= {"zip", "choose", "exclude"}:  # part of a grid
            content = {
                "base": imagenet,
                "grids": [{"method": "kd_c1", "teacher": "resnet50", **content}],
            }
        else:  # the rest of a file
            content = {
                "base": imagenet,
                "grids": [{"backbone": ["resnet18", "resnet50"], "method": ["baseline", "dks"]}],
                **content,
            }
    (workplace / "sweeps" / "from_a_page.yaml").write_text(json.dumps(content))
    assert planned(grid_of(files.read("from_a_page"), (), PARSER)).cells


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "ini"], ids=str)
def test_ini_blocks_are_read(block: Block) -> None:
    parser = configparser.ConfigParser(strict=False)
    parser.read_string(block.text)
    assert parser.sections()


def test_files_and_folders_that_pages_name_exist() -> None:
    named = {
        (page.name, path)
        for page in PAGES
        for code in re.findall(
            r"`([^`\n]+)`",
            re.sub(
                r"^```.*?^```$",
                "",
                page.read_text(encoding="utf-8"),
                flags=re.MULTILINE | re.DOTALL,
            ),
        )
        for path in re.findall(
            r"^(?:analysis|benchmarks|conf|dks|docs|examples|hydra_plugins|sweeps|tests)/[\w./]*$",
            code,
        )
    }
    assert len(named) > 40
    there = {block.title for block in ALL}  # pages say to write these
    there |= {
        path.relative_to(ROOT / "examples/pebbles/dks_pebbles").as_posix()
        for path in ROOT.glob("examples/pebbles/*/conf/*/*")
    }
    lost = [
        (page, path)
        for page, path in sorted(named)
        if not (ROOT / path).exists() and path not in there
    ]
    assert [(page, path) for page, path in lost if not re.search("[A-Z]{4}", path)] == [], (
        "NAME stands for any name"
    )


def test_the_home_page_has_the_commands_and_the_table_of_the_readme() -> None:
    home, readme = (
        [block.text for block in blocks(page)][:3]
        for page in (ROOT / "docs" / "index.md", ROOT / "README.md")
    )
    assert home == readme


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_is_as_it_says(tmp_path: Path) -> None:
    """All of it but the installation, in a copy of the checkout.

    In the sample with fewer epochs.
    """
    for name in (
        "analysis",
        "conf",
        "constraints.txt",
        "dks",
        "hydra_plugins",
        "sweeps",
        "train.py",
    ):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name, command in (("python", ""), ("dks", " -m dks")):
        (tmp_path / "bin" / name).write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{command} "$@"\n'
        )
        (tmp_path / "bin" / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }

    def run(*command: str, text: str) -> str:
        done = subprocess.run(
            command,
            input=text,
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
        return done.stdout

    said = ""
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        if block.language == "yaml":
            (tmp_path / str(block.title)).write_text(
                block.text.replace("epochs: 10", sampled("epochs: 10", "epochs: 2"))
            )
        elif block.language == "python":
            run(sys.executable, "-", text=block.text)
        elif block.language == "bash" and block.title is None:
            said += run("bash", "-euo", "pipefail", text=block.text)
    assert "18 cells (12 missing, 6 done); 12 to run" in said, (
        "the file's cells are in part those of the line before"
    )
    assert "no evidence" in said
    assert "recorded" in said
    assert "<svg" in (tmp_path / "results" / "photos" / "figures" / "photos-curves.svg").read_text()
    assert all(
        (tmp_path / name).stat().st_size > 1000
        for name in ("photos.tex", "photos.tex.json", "photos.html", "photos.safetensors")
    )


# --- what is generated


def keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_reference_has_every_key_with_its_identity_and_every_choice() -> None:
    page = config_reference.page().replace("<wbr>", "")
    rows = dict(re.findall(r"^\| <code>([a-z0-9_.]+)</code> (\|.*)$", page, re.MULTILINE))
    own = {key for key in rows if not key.startswith("hydra.")}
    assert own == set(keys(Config))
    for key in own:
        *_, identity, meaning, _ = (part.strip() for part in re.split(r"(?<!\\)\|", rows[key]))
        assert identity == ("no" if is_execution_only(key) else "yes"), key
        assert meaning, f"dks/config/schema.py does not say what {key} is"
    for path in (ROOT / "conf").glob("*/*.yaml"):
        group = config_reference.SHORT_NAMES.get(path.parent.name, path.parent.name)
        assert f"`{group}={path.stem}`: " in page
    assert {
        f"hydra.launcher.{name}" for name in ("slots", "partition", "timeout_min", "cells_per_job")
    } <= rows.keys()


def test_a_key_without_a_word_on_it_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "schema.py"
    module.write_text(
        'class A:\n    """Doc."""\n\n    one: int = 1  # said\n    # above,\n    # twice\n'
        "    two: bool = (\n        True  # and beside\n    )\n    three: int = 3\n"
    )
    fields = config_reference.classes_in(module)["A"].fields
    assert [(field.name, field.default, field.comment) for field in fields] == [
        ("one", "1", "said"),
        ("two", "True", "above, twice and beside"),
        ("three", "3", ""),
    ]


def test_the_reference_has_every_command() -> None:
    page = command_reference.page()
    for path in commands():
        assert f"\n## {' '.join(('dks', *path))}\n" in f"\n{page}"
    assert page.count("--help") >= len(commands()) - 1, "that of dks train is Hydra's"
    assert "\n## dks sweep retry\n" in page
    assert "backbone: densenet100_12, " in page, "Hydra's help of dks train"
    assert str(ROOT) not in page


def test_the_picture_of_the_data_flow_is_what_its_script_draws() -> None:
    assert data_flow.FILE.read_text(encoding="utf-8") == data_flow.picture()
    named = re.findall(
        r"\b(?:dks/\w+|conf|sweeps|hydra_plugins|analysis/paper)\b", data_flow.picture()
    )
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_on_the_paper_has_its_numbers_and_every_sweep() -> None:
    page = paper_numbers.PAGE.read_text(encoding="utf-8")
    assert paper_numbers.filled(page) == page, "python docs/generator/paper_numbers.py"
    assert set(re.findall(r"<!-- paper: (\w+) -->", page)) == set(published.SWEEPS)
    assert "| ours | dks | 26.81(0.36) | 3.08 |" in page


# few cells; the paper is all of them
BRIEF = {"table2", "table4", "table5", "table6", "strategies", "figure3"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_papers_tables_cost_is_what_a_plan_says(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = paper_numbers.PAGE.read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[?`(\w+)`.*?\| *([\d,]+) \| ([\d.]+) \| ([\d,]+) \|$", page, re.MULTILINE
    )
    assert {name for name, *_ in rows} == {*published.SWEEPS, "paper"}
    for name, runs, operations, hours in sampled(rows, [row for row in rows if row[0] in BRIEF]):
        with pytest.raises(SystemExit) as left:
            cli.main(["sweep", "plan", name, "--json", "--probe", "0"])
        assert not left.value.code
        networks = json.loads(capsys.readouterr().out)["forecast"]["networks"]
        total = sum(each["steps"] * each["flops_per_step"] for each in networks)
        said = (
            sum(each["cells"] for each in networks),
            f"{total / 1e18:.1f}",
            f"{total / 1e13 / 3600:,.0f}",
        )
        assert said == (int(runs), operations, hours), name


# --- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("mkdocs", reason='no mkdocs: pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
        "--site-dir",
        str(folder),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_every_equation_is_drawn_and_everything_public_is_in_the_reference(site: Path) -> None:
    import dks

    method = (site / "method.html").read_text(encoding="utf-8")
    assert [f'id="equation-{number}"' in method for number in (1, 2, 3, 4)] == [True] * 4
    assert method.count('<svg role="img"') > 30
    for page in site.rglob("*.html"):
        assert "arithmatex" not in page.read_text(encoding="utf-8"), page
        assert "<!-- generated" not in page.read_text(encoding="utf-8"), page
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert [name for name in dks.__all__ if f'id="dks.{name}"' not in python] == []
    assert "the pairs B: none (deep supervision)" in python
    assert not (site / "generator").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    (CHROMIUM is None or DRIVER is None) and os.environ.get("CI") != "true",
    reason="no Chromium: apt-get install chromium chromium-driver",
)
def test_pages_ask_no_other_server_and_fit_a_narrow_window(site: Path, browser) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    try:
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for page in sorted(site.rglob("*.html")):
            browser.get(address + page.relative_to(site).as_posix())
            width = browser.execute_script("return document.documentElement.scrollWidth")
            assert width <= 400, f"{page.name} is {width} pixels wide"
        requests = [
            json.loads(each["message"])["message"] for each in browser.get_log("performance")
        ]
        asked = {
            each["params"]["request"]["url"]
            for each in requests
            if each["method"] == "Network.requestWillBeSent"
        }
        assert len(asked) > 20
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert [
            each["message"]
            for each in browser.get_log("browser")
            if "favicon" not in each["message"]
        ] == []
    finally:
        server.shutdown()
        server.server_close()
