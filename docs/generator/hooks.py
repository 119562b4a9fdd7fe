"""What mkdocs does to the pages beside Markdown.

Generated references, files of the repository, equations.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the site tells of this checkout, whatever is installed

import command_reference  # noqa: E402
import config_reference  # noqa: E402
import equations  # noqa: E402

# Pages that lie elsewhere in the repository.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# What the pages use from Python beside `dks.__all__`.
BESIDE = (
    "dks.models.network.SupervisedNetwork",
    "dks.objectives.Loss",
    "dks.objectives.DistillationLoss",
    "dks.results.study.Study",
    "dks.results.figures.draw",
    "dks.results.figures.write",
    "dks.results.figures.image",
    "dks.results.report.write_report",
)
_GENERATED = re.compile(r"^<!-- generated: (\w+)\b.*?-->$", re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def python_reference() -> str:
    """Everything public, and what it returns, for mkdocstrings."""
    import dks

    return "\n\n".join(
        f"::: {name}" for name in (*(f"dks.{name}" for name in sorted(dks.__all__)), *BESIDE)
    )


GENERATORS = {
    "config": config_reference.page,
    "commands": command_reference.page,
    "python": python_reference,
}


def on_files(files: Files, config: Any) -> Files:
    """Add pages and linked files from outside of `docs/`."""
    docs = Path(config.docs_dir)
    for source, name in PAGES.items():
        files.append(
            File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8"))
        )
    for page in files.documentation_pages():
        for link in _LINK.finditer(page.content_string):
            outside = _outside(docs, page.src_uri, link["target"])
            if outside and outside not in PAGES and f"repository/{outside}" not in files.src_uris:
                files.append(
                    File.generated(
                        config, f"repository/{outside}", abs_src_path=str(ROOT / outside)
                    )
                )
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in what is generated, and let links to files of the repository find them on the site."""
    docs = Path(config.docs_dir)

    def link(found: re.Match[str]) -> str:
        outside = _outside(docs, page.file.src_uri, found["target"])
        if outside is None:
            return found[0]
        up = "../" * page.file.src_uri.count("/")
        name = PAGES.get(outside) or (
            outside.removeprefix("docs/")
            if outside.startswith("docs/")
            else f"repository/{outside}"
        )
        return f"]({up}{name}{found['anchor'] or ''})"

    return _GENERATED.sub(lambda found: GENERATORS[found[1]](), _LINK.sub(link, markdown))


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    return equations.drawn(html)


def _outside(docs: Path, page: str, target: str) -> str | None:
    """A link's file as a path in the repository, where it is none in the folder of the page."""
    lies_in = ROOT if page in PAGES.values() else (docs / page).parent
    file = (lies_in / target).resolve()
    if not file.is_file() or (docs in file.parents and lies_in != ROOT) or ROOT not in file.parents:
        return None
    return file.relative_to(ROOT).as_posix()
