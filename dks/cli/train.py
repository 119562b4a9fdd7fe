"""`dks train`, which is `train.py`: Hydra's command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from dks.cli import completion
from dks.cli.command import Command
from dks.cli.options import verbosity

# Hydra's options that have a use here, for the Tab key; Hydra itself takes too long to import.
FLAGS = ("--multirun", "-m", "--cfg", "-c", "--package", "-p", "--help", "-h", "--hydra-help")
VALUES = {"--cfg": ("job", "hydra", "all"), "--package": ()}


class TrainCommand(Command):
    """A command whose options are Hydra's, beside its own."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Its own options, and Hydra's."""
        hydras = [CompletionItem(flag) for flag in FLAGS if flag.startswith(incomplete)]
        return [*super().shell_complete(ctx, incomplete), *hydras]


def _complete(
    context: click.Context, parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    """Complete an override, or the value of an option of Hydra's."""
    option = (context.params.get("words") or ("",))[-1]
    if option in VALUES:
        return [CompletionItem(each) for each in VALUES[option] if each.startswith(word)]
    return completion.overrides(context, parameter, word)


@click.command(
    cls=TrainCommand,
    add_help_option=False,  # Hydra's help is shown
    context_settings={"ignore_unknown_options": True},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete)
@verbosity
@click.pass_context
def train(context: click.Context, words: Sequence[str]) -> int:
    """One run, or with -m a sweep and its table (as python train.py)."""
    from dks.cli.hydra_main import hydra_main  # imports Hydra

    if context.parent is not None:
        sys.argv = ["dks train"]
    return hydra_main(words)
