"""Hostile files under hubtool's commands: a few of what `make fuzz` tries by the hundred thousand."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_commands_bear_hostile_files() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "68", "--minutes", "5", "--seed", "7"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
