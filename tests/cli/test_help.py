"""What the command line says of itself."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import hubtool.cli
from hubtool.cli import cli
from hubtool.cli.commands import SUMMARIES
from tests.fixtures import CommandLine

WIDTH = 80

SHARED = {"__init__", "commands", "console", "destination", "options"}
"""Modules of hubtool/cli that are no command."""


def _leaves(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, by the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _leaves(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(_leaves(cli))


def test_every_module_of_a_command_is_listed_and_its_summary_is_its_own() -> None:
    modules = {path.stem for path in Path(hubtool.cli.__file__).parent.glob("*.py")}
    assert modules - SHARED == set(SUMMARIES)
    for name, summary in SUMMARIES.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and command.name == name
        assert (command.help or "").partition("\n")[0] == summary


def test_commands_stand_in_the_order_of_work_and_nothing_is_cut_off(hubtool: CommandLine) -> None:
    shown = hubtool("--help").stdout
    places = [shown.index(f"  {name} ") for name in SUMMARIES]
    assert places == sorted(places)
    assert all(f" {summary}\n" in shown for summary in SUMMARIES.values())
    for earlier, later in [("plan", "publish"), ("convert", "validate"), ("validate", "upload"), ("upload", "verify")]:
        assert list(SUMMARIES).index(earlier) < list(SUMMARIES).index(later)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_every_option(name: str, hubtool: CommandLine) -> None:
    outcome = hubtool(*name.split(), "--help")
    assert outcome.code == 0
    assert COMMANDS[name].help
    options = [parameter for parameter in COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert all(option.help for option in options), [option.name for option in options if not option.help]
    assert not [line for line in outcome.stdout.splitlines() if len(line) > WIDTH or line.endswith("...")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_json_form(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_two_examples_that_the_command_understands(
    name: str, hubtool: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("key.pem").touch()
    shown = hubtool(*name.split(), "--help").stdout
    examples = [shlex.split(line) for line in shown.partition("Examples:\n")[2].splitlines()]
    assert len(examples) >= 2
    called = ["hubtool", *name.split()]
    for words in examples:
        assert words[: len(called)] == called
        # It parses: every option is there and takes such a value, and nothing that is required is missing.
        COMMANDS[name].make_context(name, words[len(called) :])


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("pubish source", "publish"),
        ("recipe", "recipes"),
        ("verfy a/b", "verify"),
        ("plan source --recipes native", "--recipe"),
        ("convert source --outroot out", "--out-root"),
        ("evidence ad folder", "add"),
        ("validate folder --integrty", "--integrity"),
        ("sample folder --size tinny", "tiny"),
        ("evidence add f --check smok --outcome passed --detail x", "smoke"),
        ("plan source --recipe mixed3_6", "mixed_3_6"),
        ("recipes compact_4bits", "compact_4bit"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(line: str, meant: str, hubtool: CommandLine) -> None:
    outcome = hubtool(*line.split())
    assert (outcome.code, outcome.stdout) == (2, "")
    question = outcome.stderr.lower().partition("did you mean")[2]
    assert meant in question, outcome.stderr
