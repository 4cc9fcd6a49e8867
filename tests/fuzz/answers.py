"""Answers of a Hub, altered on their way to hubtool's commands: a proxy before a rehearsal Hub.

    python -m tests.fuzz.answers [--answers 5000] [--minutes 30] [--seed 1]

Every run of a command has one of the Hub's answers altered, once or from then on. Exits 1 if any run ended in a
traceback, took more than five seconds, wrote where it may not, or showed the token. Nothing really waits.
"""

import argparse
import http.server
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants

from hubtool.rehearsal import RehearsalHub
from tests.fuzz.harness import Workbench, peak_nbytes
from tests.fuzz.mutations import mutate

REPO = "someone/V4"
COMMANDS = (
    ("plan", "someone/source", "--recipe", "mixed_3_6"),
    ("inspect", REPO, "--json"),
    ("card", REPO, "--check"),
    ("card", "done", "--push", "--yes", "--dry-run"),
    ("verify", REPO),
    ("status", "release.toml"),
    ("upload", "done", "--to", REPO, "--yes"),
)
PAGES = (
    b"<html>Sign in to the network</html>",
    b"{}",
    b"[]",
    b"null",
    b"",
    b"not json",
    b'{"error": "x"}',
    b"\xff\xfe",
)
STATUSES = (200, 200, 200, 200, 204, 302, 400, 401, 403, 404, 409, 412, 418, 429, 500, 502, 503, 599)
HEADERS: tuple[dict[str, str], ...] = (
    *({}, {}, {}, {"Retry-After": "x"}, {"Retry-After": "-1"}, {"Retry-After": "\u00b2"}, {"ratelimit": '"a";r=0;t=9'}),
    *({"Link": '<http://elsewhere.invalid/>; rel="next"'}, {"Content-Type": "text/html"}, {"X-Error-Code": "x"}),
    *({"X-Error-Message": "\x1b[2J"}, {"Location": "http://elsewhere.invalid/"}, {"ETag": "x"}, {"Content-Range": "x"}),
)


class Proxy(http.server.ThreadingHTTPServer):
    """Hands requests on to a Hub, and alters the answer whose turn it is."""

    daemon_threads = True

    def __init__(self, hub: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.client = httpx2.Client(timeout=60, follow_redirects=False)
        self.chance = random.Random(0)
        self.turn = -1
        self.times = 0
        self.calls = 0
        self.altered: Counter[str] = Counter()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def alters(self) -> bool:
        """Whether this answer is one that is altered."""
        self.calls += 1
        return self.turn <= self.calls - 1 < self.turn + self.times


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _hand_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        dropped = ("host", "content-length", "transfer-encoding", "accept-encoding", "connection")
        sent = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        sent["Host"] = self.server.endpoint.removeprefix("http://")
        answer = self.server.client.request(self.command, f"{self.server.hub}{self.path}", headers=sent, content=body)
        status, content, headers = answer.status_code, answer.content, dict(answer.headers)
        if self.server.alters():
            chance = self.server.chance
            self.server.altered[self.command] += 1
            kind = chance.random()
            content = mutate(chance, content) if kind < 0.6 else chance.choice(PAGES) if kind < 0.85 else content
            status = status if kind < 0.6 else chance.choice(STATUSES)
            headers |= chance.choice(HEADERS)
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "content-encoding"):
                self.send_header(name, value.encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _hand_on

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    ends = time.monotonic() + 60 * options.minutes
    constants.HF_HUB_DISABLE_XET = True
    with tempfile.TemporaryDirectory(prefix="hubtool-fuzz-") as folder, RehearsalHub(Path(folder) / "hub") as hub:
        proxy = Proxy(hub.endpoint)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        bench = Workbench(Path(folder) / "bench")
        bench.prepare()
        codes = prepare(bench, proxy, hub)
        time.sleep = lambda seconds: None
        done = 0
        while done < options.answers and time.monotonic() < ends:
            command = COMMANDS[done % len(COMMANDS)]
            proxy.chance, proxy.calls = random.Random(chance.random()), 0
            proxy.turn, proxy.times = chance.randrange(codes[command]), chance.choice((1, 1, 2, 10**6))
            outcome = bench.run(list(command))
            done += 1
            for problem in outcome.problems:
                if problem not in bench.found:
                    bench.found[problem] = (outcome, b"")
                    sys.stdout.write(f"\n{problem}\n{' '.join(command)}\n{outcome.trace}")
            if done % 100 == 0:
                sys.stdout.write(
                    f"{done} runs, {sum(proxy.altered.values())} altered answers, {len(bench.found)} kinds\n"
                )
                sys.stdout.flush()
    altered = sum(proxy.altered.values())
    sys.stdout.write(f"{done} runs, {altered} altered answers, {len(bench.found)} kinds of failure, ")
    sys.stdout.write(f"{peak_nbytes() / 1e6:.0f} MB at most\n")
    return 1 if bench.found else 0


def prepare(bench: Workbench, proxy: Proxy, hub: RehearsalHub) -> dict[tuple[str, ...], int]:
    """Publish what the commands read; how many answers each command has."""
    os.environ |= {"HF_ENDPOINT": proxy.endpoint, "HF_TOKEN": hub.token}
    bench.secrets.append(hub.token)
    api = HfApi(hub.endpoint, hub.token)
    api.create_repo("someone/source")
    api.upload_folder(repo_id="someone/source", folder_path=bench.folder / "source")
    assert bench.run(["upload", "done", "--to", REPO, "--yes"]).code == 0
    shutil.rmtree(bench.folder / "done" / ".hubtool" / "hub", ignore_errors=True)
    counts: dict[tuple[str, ...], int] = {}
    for command in COMMANDS:
        proxy.calls = 0
        bench.run(list(command))
        counts[command] = max(1, proxy.calls)
    return counts


if __name__ == "__main__":
    sys.exit(main())
