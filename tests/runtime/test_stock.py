"""Stock mlx-lm runs what hubtool publishes, in processes that cannot import hubtool."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fixtures import Conversions

RECIPES = ["mixed_3_6", "native", "compact_4bit"]

WITHOUT_HUBTOOL = "import runpy, sys; sys.modules['hubtool'] = None; runpy.run_module('mlx_lm', run_name='__main__')"
"""`python -m mlx_lm`, in a process in which `import hubtool` fails."""


@pytest.fixture(params=RECIPES)
def folder(request: pytest.FixtureRequest, converted: Conversions, tmp_path: Path) -> Path:
    """A finished folder, as a stranger downloads it."""
    return shutil.copytree(converted("tiny", request.param).folder, tmp_path / "repo", ignore=lambda *_: {".hubtool"})


def stock(*arguments: str) -> list[str]:
    return [sys.executable, "-c", WITHOUT_HUBTOOL, *arguments]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def run_stock(cwd: Path, *arguments: str) -> str:
    done = subprocess.run(stock(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_generate_and_prompt_caches(folder: Path) -> None:
    model = ("--model", "repo", "--trust-remote-code")
    out = run_stock(
        folder.parent, "generate", *model, "--prompt", "Hello", "--max-tokens", "16", "--ignore-chat-template"
    )
    assert "Generation: 16 tokens" in out
    run_stock(
        folder.parent, "cache_prompt", *model, "--prompt", "One two three", "--prompt-cache-file", "c.safetensors"
    )
    # The cache is read before the model's file is imported.
    file = ("--prompt-cache-file", "c.safetensors")
    assert "Generation:" in run_stock(
        folder.parent, "generate", "--trust-remote-code", *file, "--prompt", "four", "-m", "4"
    )


@contextmanager
def server(cwd: Path, *arguments: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (cwd / "server.log").open("w") as log:
        process = subprocess.Popen(
            stock("server", *arguments, "--port", str(port)), cwd=cwd, env=environment(), stdout=log, stderr=log
        )
    try:
        while True:
            assert process.poll() is None, (cwd / "server.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def test_server_answers_a_chat(folder: Path) -> None:
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0.0}
    with server(folder.parent, "--model", "repo", "--trust-remote-code") as address:
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["choices"][0]["message"]["role"] == "assistant"
