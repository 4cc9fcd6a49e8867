"""Every command by name, imported when it is used: listing and completing them loads nothing else."""

import importlib
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from hubtool.errors import did_you_mean

COMMANDS: Mapping[str, Mapping[str, str]] = {
    "Before": {
        "recipes": "List the recipes, or explain one.",
        "plan": "Print bytes, bits, shards, memory and disk of a conversion.",
        "doctor": "Say what this machine can do, and what it lacks.",
    },
    "All at once": {
        "publish": "Convert a checkpoint and publish it; or a whole release.",
        "status": "Say what of a release is done and what is left.",
    },
    "Stage by stage": {
        "calibrate": "Measure the inputs of each weight, to fit conversions to.",
        "convert": "Convert a checkpoint into a folder that is ready to publish.",
        "validate": "Check a finished folder step by step, and record the evidence.",
        "quality": "Measure how far predictions are from the source's.",
        "evidence": "List what validations found, or add what you did elsewhere.",
        "card": "Write, check, compare, preview or push a model card.",
        "upload": "Publish a finished folder in one commit.",
        "verify": "Compare a repo on the Hub with its record.",
    },
    "Afterwards": {
        "inspect": "Measure a folder or repo, and name every disagreement.",
        "withdraw": "Mark a published repo as no longer to be used.",
    },
    "To try it": {
        "sample": "Write a small random checkpoint in the published format.",
        "rehearse": "Serve the Hub's protocol on this machine.",
    },
}
"""Heading -> command -> its summary, in the order of work. A test holds the summaries equal to the commands' own."""

SUMMARIES: Mapping[str, str] = {name: text for group in COMMANDS.values() for name, text in group.items()}


class Commands(click.Group):
    """The commands of hubtool/cli: `hubtool NAME` is `command` of the module of that name."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names, in the order of work."""
        return list(SUMMARIES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command, imported now."""
        if name not in SUMMARIES:
            return None
        command: click.Command = importlib.import_module(f"hubtool.cli.{name}").command
        return command

    def resolve_command(self, context: click.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the words name.

        Raises:
            click.UsageError: There is none; it names the nearest.
        """
        if args and not args[0].startswith("-") and args[0] not in SUMMARIES and not context.resilient_parsing:
            question = did_you_mean(args[0], SUMMARIES) or f"expected one of {', '.join(SUMMARIES)}"
            context.fail(f"no such command: {args[0]}; {question}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands under their headings, with columns that line up from one heading to the next."""
        width = max(map(len, SUMMARIES))
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin like this, with their summaries; or the group's own options."""
        named = [CompletionItem(name, help=text) for name, text in SUMMARIES.items() if name.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, context, incomplete)]
