"""The configuration reference as Markdown, from the comments of the typed schema and of the files
in `conf/`.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from dks.config.identity import is_execution_only
from dks.config.names import SHORT_NAMES

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


@dataclass(frozen=True)
class Field:
    """One line of a dataclass or of an enumeration."""

    name: str
    type: str  # as it is written; of an enumeration: its value
    default: str | None  # as it is written; None: there is none
    comment: str


@dataclass(frozen=True)
class Class:
    """A dataclass or an enumeration of a module."""

    name: str
    doc: str
    fields: tuple[Field, ...]
    is_enum: bool


def classes_in(path: Path) -> dict[str, Class]:
    """The classes of a module with what their comments say of each field, by name."""
    source = path.read_text(encoding="utf-8")
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        node.name: Class(
            node.name,
            " ".join((ast.get_docstring(node) or "").split()),
            tuple(_fields(node, comments)),
            any("Enum" in ast.unparse(base) for base in node.bases),
        )
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _fields(node: ast.ClassDef, comments: dict[int, tuple[str, bool]]) -> list[Field]:
    found = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            name, kind, value = ast.unparse(item.target), ast.unparse(item.annotation), item.value
        elif isinstance(item, ast.Assign):
            name, kind, value = ast.unparse(item.targets[0]), ast.unparse(item.value), None
        else:
            continue
        if not name.startswith("_"):
            default = None if value is None else ast.unparse(value)
            found.append(
                Field(
                    name, kind, None if default == "MISSING" else default, _comment(item, comments)
                )
            )
    return found


def _comment(item: ast.stmt, comments: dict[int, tuple[str, bool]]) -> str:
    """The comment block above a statement, and the comments in its lines."""
    first = item.lineno
    while comments.get(first - 1, ("", False))[1]:
        first -= 1
    last = item.end_lineno or item.lineno
    return " ".join(comments[line][0] for line in range(first, last + 1) if line in comments)


def leading_comment(path: Path) -> str:
    """What the first lines of a choice's file say of it."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(" ".join(line.lstrip("# ").split()))
    return " ".join(lines)


def page() -> str:
    """The whole reference. Raises a ValueError for a field or a choice without an explanation."""
    schema = classes_in(ROOT / "dks" / "config" / "schema.py")
    groups = [field for field in schema["Config"].fields if field.type in schema]
    single = tuple(field for field in schema["Config"].fields if field.type not in schema)
    parts = ["## Groups", _overview(groups)]
    parts += [_group(field.name, field.type, schema) for field in groups]
    parts += [
        "## method",
        "Presets of the groups above; a method and a single choice beside it must agree.",
        _choices("method"),
    ]
    parts += ["## Keys outside of a group", _keys("", Class("", "", single, False), schema)]
    parts += ["## hydra.launcher", _launchers()]
    return "\n\n".join(part for part in parts if part)


def _overview(groups: list[Field]) -> str:
    chosen = _defaults()
    short = {long: name for name, long in SHORT_NAMES.items()}
    lines = ["| group | short | default | choices |", "|---|---|---|---|"]
    for name in [*(field.name for field in groups), "method"]:
        if names := _names(name):
            default = f"`{chosen[name]}`" if chosen.get(name) else "none: what the other groups say"
            shown = f"`{short[name]}`" if name in short else ""
            lines.append(
                f"| [`{name}`](#{name}) | {shown} | {default} | "
                f"{', '.join(f'`{each}`' for each in names)} |"
            )
    return "\n".join(lines)


def _defaults() -> dict[str, str]:
    """Group -> what `python train.py` takes, less what the data or the backbone bring."""
    entries = OmegaConf.load(CONF / "config.yaml").defaults
    return {
        str(key): value
        for entry in entries
        if OmegaConf.is_dict(entry)
        for key, value in entry.items()
    }


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _group(name: str, kind: str, schema: dict[str, Class]) -> str:
    inner = [field.type for field in schema[kind].fields]
    nested = [
        each
        for each in schema
        if any(re.search(rf"\b{each}\b", text) for text in inner) and not schema[each].is_enum
    ]
    nested += [
        each
        for each in schema
        if any(each in field.type for one in nested for field in schema[one].fields)
    ]
    parts = [f"## {name}", schema[kind].doc, _keys(f"{name}.", schema[kind], schema)]
    parts += [
        f"A `{each}`: {schema[each].doc}\n\n{_plain_keys(schema[each])}"
        for each in dict.fromkeys(nested)
    ]
    return "\n\n".join([*parts, _choices(name)])


def _keys(prefix: str, owner: Class, schema: dict[str, Class]) -> str:
    lines = ["| key | type | default | identity | meaning |", "|---|---|---|---|---|"]
    for field in owner.fields:
        key, kind = f"{prefix}{field.name}", _enumeration(field, schema)
        meaning = _text(field.comment)
        if kind is not None:
            values = [
                f"`{each.name}`" + (f": {_text(each.comment)}" if each.comment else "")
                for each in kind.fields
            ]
            meaning = "<br>".join([*([meaning] if meaning else []), *values])
        shown = "choice" if field.type in schema else _type(field)
        part = "no" if is_execution_only(key) else "yes"
        lines.append(f"| {_broken(key)} | {shown} | {_default(field, kind)} | {part} | {meaning} |")
    return "\n".join(lines)


def _enumeration(field: Field, schema: dict[str, Class]) -> Class | None:
    """The enumeration that a field is of.

    A text whose default is a member of one may be something else as well.
    """
    return schema.get(field.type) or schema.get((field.default or "").partition(".")[0])


def _broken(key: str) -> str:
    """A key that a narrow column may break behind a dot."""
    return f"<code>{key.replace('.', '.<wbr>')}</code>"


def _plain_keys(owner: Class) -> str:
    lines = ["| key | type | meaning |", "|---|---|---|"]
    return "\n".join(
        [
            *lines,
            *(
                f"| `{field.name}` | `{field.type}` | {_text(field.comment)} |"
                for field in owner.fields
            ),
        ]
    )


def _type(field: Field) -> str:
    return " or ".join(
        f"`{'null' if part == 'None' else part}`" for part in field.type.split(" | ")
    )


def _default(field: Field, kind: Class | None) -> str:
    if field.default is None:
        return "*of the choice*"
    if kind is not None:
        return f"`{field.default.split('.')[1]}`"
    made = {"field(default_factory=list)": "[]", "field(default_factory=dict)": "{}"}
    plain = {"None": "null", "True": "true", "False": "false"}
    return (
        f"`{made.get(field.default) or plain.get(field.default) or field.default.strip(chr(39))}`"
    )


def _choices(group: str) -> str:
    """Every choice of a group: what it is, and folded its file."""
    parts = []
    for name in _names(group):
        path = CONF / group / f"{name}.yaml"
        said = leading_comment(path)
        if not said:
            raise ValueError(f"{path} does not say in its first line what it is")
        body = "\n".join(
            f"    {line}".rstrip() for line in path.read_text(encoding="utf-8").splitlines()
        )
        parts.append(
            f'??? abstract "`{group}={name}`: {_title(said)}"\n\n    ```yaml\n{body}\n    ```'
        )
    return "\n\n".join(parts)


def _title(text: str) -> str:
    """Without the command that many files give behind a colon, and short enough for a line."""
    text = re.split(r":? +(?:python train\.py|teacher=checkpoint)", text)[0].rstrip(" :,;")
    return _text(text).replace('"', "&quot;")


def _launchers() -> str:
    parts = []
    for name, file, kind in (
        ("local", "hydra_plugins/dks_launchers/local.py", "LocalOptions"),
        ("slurm", "dks/sweeps/launchers/slurm.py", "Resources"),
    ):
        owner = classes_in(ROOT / file)[kind]
        lines = [
            f"### {name}",
            f"`hydra/launcher={name}`. {owner.doc}",
            "| key | type | default | meaning |\n|---|---|---|---|",
        ]
        for field in owner.fields:
            key = _broken(f"hydra.launcher.{field.name}")
            lines[-1] += (
                f"\n| {key} | {_type(field)} | {_default(field, None)} | {_text(field.comment)} |"
            )
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def _text(text: str) -> str:
    """Prose for a cell of a table."""
    return text.replace("|", "&#124;").replace("<", "&lt;").replace("*", "\\*")
