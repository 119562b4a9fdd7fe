"""`dks completion`: what the Tab key offers in bash, zsh and fish.

click knows commands, options and choices; the functions of this module know names of sweeps and
runs, and `key=value`. The scripts are our own, because those of click put a space behind `key=`,
complete no file behind it, and bash splits words at `=`. A shell evaluates its script once, and
that asks this command at every Tab. Whatever goes wrong then, nothing is offered and nothing
printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias, get_origin

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from dks.cli.exit_status import DONE
from dks.config.files import choices, declarations
from dks.sweeps.launchers import LAUNCHERS

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
LAUNCHER = "hydra/launcher"
LOCAL_OPTIONS = ("slots", "slots_per_gpu")


@click.command(
    # what a script asks about follows the name of the shell, options and all
    context_settings={"allow_extra_args": True, "allow_interspersed_args": False}
)
@click.argument("shell", type=click.Choice(list(SCRIPTS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """What makes a shell complete commands, options, sweeps, choices and keys.

    To have it in every shell, put the line into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.

    \b
    Examples:
      eval "$(dks completion bash)"   in bash
      eval "$(dks completion zsh)"    in zsh
      dks completion fish | source    in fish
    """
    if not context.args:
        print(SCRIPTS[shell].strip())
        return DONE
    words, done = context.args, 0
    if shell == "bash":  # takes `key=` for a word of its own, and wants what is behind it alone
        part, line = words
        words = split_arg_string(line)[1:]
        if not words or (line[-1].isspace() and not words[-1][-1:].isspace()):
            words.append("")
        done = len(words[-1]) - len(part)
    for value, about in candidates(context.find_root().command, words).items():
        if value == FILES:
            print(FILES)
        elif shell == "bash":
            print(value[done:] + ("" if value.endswith(("=", ".", ",")) else " "))
        elif shell == "zsh":
            print(value.replace(":", "\\:") + f":{about}")
        else:
            print(f"{value}\t{about}".rstrip("\t"))
    return DONE


def candidates(command: click.Command, words: Sequence[str]) -> dict[str, str]:
    """What the last of the words could be: whole words, or FILES, and what each means.

    Args:
        command: that of all the words.
        words: without the command's own name.
    """
    *before, word = words
    completions = ShellComplete(command, {}, "dks", "").get_completions
    found = completions(before, word) or (completions(before, "-") if not word else [])
    option = word[: word.find("=") + 1] if word.startswith("-") else ""
    return {
        FILES if item.type == "file" else option + item.value: " ".join((item.help or "").split())
        for item in found
    }


# --- what click does not know, for `shell_complete` of options and arguments

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names(known: Callable[[click.Context], Iterable[str]]) -> Complete:
    """Complete one of the names that are known."""
    return lambda context, parameter, word: [
        CompletionItem(each) for each in known(context) if each.startswith(word)
    ]


def _named(context: click.Context) -> list[str]:
    return [path.stem for path in declarations("sweeps").glob("*.yaml")]


def _begun(context: click.Context) -> list[str]:
    folder = Path(context.params.get("results_dir") or "results")
    return sorted(path.parent.name for path in folder.glob("*/sweep.json"))


def _runs(context: click.Context) -> list[str]:
    folder = Path(context.params.get("runs_dir") or "runs")
    return sorted(path.parent.name for path in folder.glob("*/record.json"))


backbones = names(lambda context: choices("backbone"))
runs = names(_runs)
sweeps = names(lambda context: sorted({*_named(context), *_begun(context)}))
runs_and_sweeps = names(lambda context: [*_begun(context), *_runs(context)])


def overrides(
    context: click.Context, parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    """`group=choice` and `key=value`, the last of several values.

    Without a value groups, and keys down to the next dot.
    """
    bare = word.lstrip("+")
    plus = word[: len(word) - len(bare)]
    key, equals, values = bare.partition("=")
    if equals and key in PATHS:
        return [CompletionItem(word, type="file")]
    if equals:
        done, comma, begun = values.rpartition(",")
        known = LAUNCHERS if key == LAUNCHER else _keys().get(key) or choices(key)
        return [
            CompletionItem(f"{plus}{key}={done}{comma}{value}")
            for value in known
            if value.startswith(begun) and value not in done.split(",")
        ]
    found = []
    for name in (each for each in _names(key) if each.startswith(key)):
        dot = name.find(".", len(key))
        found.append(CompletionItem(plus + (f"{name}=" if dot < 0 else name[: dot + 1])))
    return found


def _names(begun: str) -> list[str]:
    """Groups and keys; of the launchers' keys no more than one until they are asked for."""
    groups = sorted(path.name for path in declarations("conf").iterdir() if path.is_dir())
    options = list(LOCAL_OPTIONS[:1])
    if begun.startswith("hydra."):
        from dks.sweeps.launchers.slurm import Resources  # imports Hydra

        options = [*LOCAL_OPTIONS, *(field.name for field in fields(Resources))]
    return [*groups, LAUNCHER, *_keys(), *(f"hydra.launcher.{name}" for name in options)]


def _keys() -> dict[str, tuple[str, ...]]:
    """Every key of the configuration, with its values where they can be listed."""
    from dks.config.schema import Config  # imports OmegaConf

    return dict(_keys_below(Config, ""))


def _keys_below(part: type, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for field in fields(part):
        key, kind = f"{prefix}{field.name}", field.type
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _keys_below(kind, f"{key}.")
        elif isinstance(kind, type) and issubclass(kind, Enum):
            yield key, tuple(str(each.value) for each in kind)
        elif get_origin(kind) is not dict:  # whose keys are named nowhere
            yield key, ("true", "false") if kind is bool else ()
