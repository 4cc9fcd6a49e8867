"""An interrupt ends hubtool with 130, whatever it is doing, and however a library takes it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import Samples

STUCK = """
import json, sys, time

def loads(*arguments, **keywords):
    print("stuck", file=sys.stderr, flush=True)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

json.loads = loads
"""
"""A library that takes every exception for its own, as a callback of Rust's does, and never comes to an end."""

SLOW = """
import sys, time
print("stuck", file=sys.stderr, flush=True)
time.sleep(60)
"""
"""A module that is being imported."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["sitecustomize", "msgspec"])
def test_interrupt_that_gets_lost_ends_the_process_all_the_same(
    kind: signal.Signals, module: str, sample: Samples, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(STUCK if module == "sitecustomize" else SLOW)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "hubtool", "inspect", str(sample("tiny"))],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    while "stuck" not in (line := process.stderr.readline()):
        assert line, "it ended before it was stuck"
    process.send_signal(kind)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
