"""What stands on a terminal while a stage runs: one line that fits, whatever its width."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios

import pytest

from hubtool.cli.console import spoken_part
from hubtool.units import GB

STAGE = """
import time
from hubtool.cli.console import Console
console = Console()
with console.stage("DeepSeek-V4-Flash-mixed_3_6: send", 118 * 10**9) as advance:
    advance(41 * 10**9, "model-00001-of-00028.safetensors", found=True)
    for step in range(7):
        time.sleep(0.12)
        advance(10**9, "model-00002-of-00028.safetensors")
    advance(70 * 10**9 - 1, "model-00003-of-00028.safetensors")
    time.sleep(0.3)
"""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _shown(columns: int) -> list[str]:
    """Every line that a terminal of so many columns was given."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("COLUMNS", None)
        os.execvpe(sys.executable, [sys.executable, "-c", STAGE], {**os.environ, "TERM": "xterm"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    text = b""
    try:
        while part := os.read(terminal, 65536):
            text += part
    except OSError:
        pass  # Linux says so when the other end has hung up
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0, text
    return [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPES.sub("", text.decode())) if line.strip()]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_stage_is_one_line_with_bar_percent_bytes_rate_and_time(columns: int) -> None:
    shown = _shown(columns)
    assert all(len(line) <= columns for line in shown), shown
    bars = [line for line in shown if "━" in line]
    assert any(re.search(r"━ .*\d+%  \d+(\.\d+)? of 118.00 GB  \S+ [GMk]?B/s  .+ left$", bar) for bar in bars), bars
    assert "100%" not in "".join(bars)  # a byte is missing
    assert "  99%" in bars[-1]
    said = "DeepSeek-V4-Flash-mixed_3_6: send goes on where it stopped: 41 of 118.00 GB are"
    assert any(line.startswith(said) for line in shown), shown


def test_bytes_of_bytes_name_a_unit_once() -> None:
    assert spoken_part(41 * GB, 118 * GB) == "41 of 118.00 GB"
    assert spoken_part(41 * 10**6, 118 * GB) == "41 MB of 118.00 GB"
    assert spoken_part(0, 118 * GB) == "0 bytes of 118.00 GB"
