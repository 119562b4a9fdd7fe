"""`dks completion`: what the Tab key offers in bash, zsh and fish.

A shell runs a script of a few lines, which asks this command at every Tab. Whatever goes wrong
then, nothing is offered and nothing printed.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from dks.cli import bench
from dks.cli.exit_status import DONE
from dks.cli.options import Commands, add_command, add_loudness

# Command and option -> what the shell evaluates at its start.
SCRIPTS = {
    "bash": r"""
_dks_completion() {
    local IFS=$'\n' program=$1
    program=${program/#\~/$HOME}
    COMPREPLY=($("$program" completion bash "$2" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    if [[ ${COMPREPLY[0]} == '<files>' ]]; then
        COMPREPLY=()
        compopt -o default +o nospace 2>/dev/null
    fi
}
complete -o nospace -F _dks_completion dks
""",
    "zsh": r"""
_dks_completion() {
    local line
    local -a whole begun
    local program=${words[1]/#\~/$HOME} before=("${(@Q)words[2,CURRENT-1]}")
    for line in "${(@f)$("$program" completion zsh "${before[@]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        case $line in
            '') ;;
            '<files>') compset -P '*='; _files ;;
            *[=.,]:*) begun+=("$line") ;;
            *) whole+=("$line") ;;
        esac
    done
    (( ! $#whole )) || _describe dks whole
    (( ! $#begun )) || _describe dks begun -S ''
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
compdef _dks_completion dks
""",
    "fish": r"""
function __dks_completion
    set -l before (commandline -opc)
    set -l word (commandline -ct)
    set -l found ($before[1] completion fish $before[2..] "$word" 2>/dev/null)
    if test "$found[1]" = '<files>'
        set -l key (string match -r '^[^=]*=' -- "$word")
        for path in (__fish_complete_path (string replace -- "$key" '' "$word"))
            echo "$key$path"
        end
    else
        string join \n -- $found
    end
end
complete -c dks -e
complete -c dks -f -a '(__dks_completion)'
""",
}
FILES = "<files>"  # stands for the names of files, which shells complete better
PATHS = ("data.root", "kd_teacher.path", "runs_dir", "results_dir")  # keys of the configuration
# What Hydra's own groups and keys are used for here; hydra_plugins/dks_launchers has them, whose
# import takes too long.
LAUNCHER, LAUNCHERS = "hydra/launcher", ("local", "slurm")
LOCAL_OPTIONS = ("slots", "slots_per_gpu")

Candidate: TypeAlias = tuple[str, str]  # a whole word, and what it means or nothing


def add(commands: Commands, parser: argparse.ArgumentParser) -> None:
    """`parser`: that of `dks`, to which all the other commands have been added."""
    added = add_command(
        commands,
        "completion",
        "what makes a shell complete commands, options, sweeps, choices and keys",
        [
            'eval "$(dks completion bash)"   in bash',
            'eval "$(dks completion zsh)"    in zsh',
            "dks completion fish | source    in fish",
        ],
        partial(_completion, parser),
        "To have it in every shell, put the line into ~/.bashrc, ~/.zshrc or "
        "~/.config/fish/config.fish.",
    )
    added.set_defaults(completes=True)
    added.add_argument("shell", choices=tuple(SCRIPTS))
    # what a script asks about
    added.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _completion(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if not options.words:
        print(SCRIPTS[options.shell].strip())
        return DONE
    if options.shell != "bash":
        found = list(dict.fromkeys(candidates(parser, options.words)))
        between = ":" if options.shell == "zsh" else "\t"
        for value, about in found:
            shown = value.replace(":", "\\:") if options.shell == "zsh" else value
            print(value if value == FILES else f"{shown}{between}{about}".rstrip("\t"))
        return DONE
    # bash takes `key=` for words of their own, and wants the rest of the word alone
    part, line = options.words
    words = _split(line)
    done = len(words[-1]) - len(part)
    for value, _ in dict.fromkeys(candidates(parser, words)):
        print(
            value
            if value == FILES
            else value[done:] + ("" if value.endswith(("=", ".", ",")) else " ")
        )
    return DONE


def _split(line: str) -> list[str]:
    """The words behind the command's name, the last of them the one that is typed."""
    for ending in ("", "'", '"'):  # a quote may still be open
        try:
            words = shlex.split(line + ending)
        except ValueError:
            continue
        return (
            [*words[1:], ""]
            if len(words) < 2 or (line[-1:].isspace() and not ending)
            else words[1:]
        )
    return line.split(" ")[1:]


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[Candidate]:
    """What the last of the words could be; the parser is for all of them."""
    *before, word = words
    given: dict[str, str] = {}
    commands, waiting = "", None  # the option whose value comes next
    expected = _positionals(parser)
    for each in before:
        name, equals, value = each.partition("=")
        if waiting is not None:
            given[waiting.dest], waiting = each, None
        elif option := parser._option_string_actions.get(name):
            if equals:
                given[option.dest] = value
            elif option.nargs != 0:
                waiting = option
        elif expected and isinstance(expected[0], argparse._SubParsersAction):
            if each not in expected[0].choices:
                return
            parser = _hydras() if each == "train" else expected[0].choices[each]
            commands, expected = f"{commands} {each}".strip(), _positionals(parser)
        elif expected and not each.startswith("-"):
            given[expected[0].dest] = each
            expected = expected if expected[0].nargs in ("*", argparse.REMAINDER) else expected[1:]
    name, equals, value = word.partition("=")
    if waiting is not None:
        yield from _starting(word, _values(commands, waiting, given, word))
    elif equals and name in parser._option_string_actions:
        found = _values(commands, parser._option_string_actions[name], given, value)
        yield from (
            (each if each == FILES else f"{name}={each}", about)
            for each, about in _starting(value, found)
        )
    elif word.startswith("-") or not expected:
        yield from _starting(word, _options(parser))
    else:
        yield from _starting(word, _values(commands, expected[0], given, word))


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]


def _starting(word: str, found: Iterable[Candidate]) -> Iterator[Candidate]:
    return ((value, about) for value, about in found if value.startswith(word) or value == FILES)


def _options(parser: argparse.ArgumentParser) -> Iterator[Candidate]:
    for action in parser._actions:
        for option in action.option_strings:
            yield option, _plain(action.help)


def _plain(about: str | None) -> str:
    """The help as one line."""
    return " ".join((about or "").replace("%%", "%").split())


def _hydras() -> argparse.ArgumentParser:
    """What `dks train` takes, which is Hydra's."""
    parser = argparse.ArgumentParser(prog="dks train", allow_abbrev=False)
    add_loudness(parser)
    parser.add_argument(
        "--multirun", "-m", action="store_true", help="every combination of the values given"
    )
    parser.add_argument(
        "--cfg", "-c", choices=("job", "hydra", "all"), help="show the configuration, run nothing"
    )
    parser.add_argument("--package", "-p", metavar="KEY", help="with --cfg: this part of it")
    parser.add_argument(
        "--resolve",
        action="store_true",
        help="with --cfg: references replaced by what they refer to",
    )
    parser.add_argument("--info", "-i", action="store_true", help="what Hydra knows")
    parser.add_argument("--hydra-help", action="store_true", help="Hydra's own help")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return parser


def _values(
    commands: str, action: argparse.Action, given: dict[str, str], word: str
) -> Iterable[Candidate]:
    """What can stand for an argument.

    Its choices, files, or what is known by the name of what is asked for.
    """
    if isinstance(action, argparse._SubParsersAction):
        return [(each.dest, _plain(each.help)) for each in action._choices_actions]
    if action.choices is not None:
        return [(str(choice), "") for choice in action.choices]
    if action.metavar in ("FILE", "DIR", "FOLDER"):
        return [(FILES, "")]
    by_argument = {
        "name": _sweeps,
        "overrides": _overrides,
        "cell_id": _runs,
        "backbone": _backbones,
    }
    by_command = {"bench": _benchmarks, "sync": _runs_and_sweeps}
    found = by_command.get(commands) if action.dest == "names" else by_argument.get(action.dest)
    return [(value, "") for value in (found(given, word) if found else ())]


def _sweeps(given: dict[str, str], word: str) -> list[str]:
    """Named ones, and those that were begun."""
    named = (path.stem for path in _declared("sweeps").glob("*.yaml"))
    return sorted({*named, *_begun(given)})


def _begun(given: dict[str, str]) -> set[str]:
    return {
        path.parent.name for path in Path(given.get("results_dir", "results")).glob("*/sweep.json")
    }


def _runs(given: dict[str, str], word: str) -> Iterable[str]:
    if "weights" in given:  # of `dks evaluate`: a file is tested
        return _overrides(given, word)
    return sorted(
        path.parent.name for path in Path(given.get("runs_dir", "runs")).glob("*/record.json")
    )


def _runs_and_sweeps(given: dict[str, str], word: str) -> list[str]:
    return [*sorted(_begun(given)), *_runs(given, word)]


def _benchmarks(given: dict[str, str], word: str) -> Iterable[str]:
    return bench.benchmarks()


def _backbones(given: dict[str, str], word: str) -> list[str]:
    return _choices("backbone")


def _declared(name: str) -> Path:
    from dks.config.files import declarations

    return declarations(name)


def _choices(group: str) -> list[str]:
    from dks.config.files import choices

    return choices(group)


def _overrides(given: dict[str, str], word: str) -> Iterable[str]:
    """`group=choice` and `key=value`, the last of several values.

    Without a value groups, and keys down to the next dot.
    """
    bare = word.lstrip("+")
    plus = word[: len(word) - len(bare)]
    key, equals, values = bare.partition("=")
    if equals:
        done, comma, _ = values.rpartition(",")
        for value in _values_of(key):
            if value not in done.split(","):
                yield value if value == FILES else f"{plus}{key}={done}{comma}{value}"
        return
    groups = {path.name for path in _declared("conf").iterdir() if path.is_dir()}
    for known in (*sorted(groups), LAUNCHER, *_keys(), *_launcher_keys(key)):
        below = known[len(key) :].find(".") if known.startswith(key) else -1
        yield plus + (f"{known}=" if below < 0 else known[: len(key) + below + 1])


def _launcher_keys(begun: str) -> list[str]:
    """The keys of the launchers; no more than one of them before anybody asks for more."""
    prefix = "hydra.launcher."
    if not begun.startswith("hydra."):
        return [f"{prefix}{LOCAL_OPTIONS[0]}"]
    from dataclasses import fields

    from dks.sweeps.launchers.slurm import Resources

    return [
        f"{prefix}{name}" for name in (*LOCAL_OPTIONS, *(field.name for field in fields(Resources)))
    ]


def _values_of(key: str) -> Iterable[str]:
    if key == LAUNCHER:
        return LAUNCHERS
    if key in PATHS:
        return (FILES,)
    return _keys().get(key) or _choices(key)


def _keys() -> dict[str, tuple[str, ...]]:
    """Every key of the configuration, with its values where they can be listed."""
    from dks.config.schema import Config

    return dict(_keys_below(Config, ""))


def _keys_below(part: Any, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    from dataclasses import fields, is_dataclass
    from enum import Enum
    from typing import get_origin

    for field in fields(part):
        key: str = f"{prefix}{field.name}"
        if is_dataclass(field.type):
            yield from _keys_below(field.type, f"{key}.")
        elif field.type is bool:
            yield key, ("true", "false")
        elif isinstance(field.type, type) and issubclass(field.type, Enum):
            yield key, tuple(str(each.value) for each in field.type)
        elif get_origin(field.type) is not dict:  # whose keys are named nowhere
            yield key, ()
