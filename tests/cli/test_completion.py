"""Completion in the real shells: what stands on the line after TAB was pressed."""

import os
import pty
import re
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

SOURCED = {
    "bash": 'eval "$(_HUBTOOL_COMPLETE=bash_source hubtool)"',
    "zsh": 'eval "$(_HUBTOOL_COMPLETE=zsh_source hubtool)"',
    "fish": "_HUBTOOL_COMPLETE=fish_source hubtool | source",
}
"""The line of README that installs completion in a shell."""

STARTED = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}

PREPARED = {"bash": [], "zsh": ["autoload -Uz compinit && compinit -u -D"], "fish": []}
"""What a person's own configuration has done by then."""

SCRIPT = f"""\
#!/bin/sh
[ -z "$_HUBTOOL_COMPLETE" ] && echo "called:" "$@" ":end" && exit
exec "{sys.executable}" -m hubtool
"""
"""Stands for hubtool: completes as it does, and only prints what it is called with."""

ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[\[(][0-9;?>=]*[A-Za-z]|\x1b[=>]|[\x0e\x0f]")
"""What moves the cursor and sets colors (ECMA-48)."""

PATIENCE = 15.0  # seconds


class Shell:
    """A shell at a terminal of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
            "LINES": "50",
        }
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execvpe(STARTED[name][0], STARTED[name], environment)
        self.shown = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._terminal, text.encode())

    def wait_for(self, pattern: str) -> str:
        """All that was shown, once a pattern is in it."""
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, self.shown):
            readable, _, _ = select.select([self._terminal], [], [], max(0.0, end - time.monotonic()))
            assert readable, f"no {pattern!r} in {self.shown!r}"
            text = os.read(self._terminal, 65536).decode(errors="replace")
            if "\x1b[c" in text or "\x1b[0c" in text:
                self.type("\x1b[?62;c")  # fish asks what terminal this is, and waits for it
            self.shown += ESCAPES.sub("", text)
        return self.shown

    def close(self) -> None:
        """Hang up."""
        os.close(self._terminal)
        os.waitpid(self._pid, 0)


@pytest.fixture(scope="module", params=SOURCED)
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which completion was installed by the documented line."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp(name)
    command = folder / "hubtool"
    command.write_text(SCRIPT)
    command.chmod(0o755)
    opened = Shell(name, folder)
    request.addfinalizer(opened.close)
    for line in [*PREPARED[name], SOURCED[name], "echo rea''dy"]:
        opened.type(f"{line}\r")
    opened.wait_for("ready")
    return opened


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pub", "publish"),
        ("evidence li", "evidence list"),
        ("plan x --rec", "plan x --recipe"),
        ("plan x --recipe compa", "plan x --recipe compact_4bit"),
        ("convert x --measure-error sa", "convert x --measure-error sample"),
        ("recipes na", "recipes native"),
    ],
)
def test_tab_completes_commands_options_recipes_and_choices(shell: Shell, typed: str, completed: str) -> None:
    shell.shown = ""
    shell.type(f"hubtool {typed}\t\r")
    shown = shell.wait_for("called: .*:end")
    assert f"called: {completed} :end" in shown
