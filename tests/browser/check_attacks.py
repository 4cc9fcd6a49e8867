"""Opens previews of hostile cards in headless Chromium: nothing runs, nothing is asked of any server.

    python -m tests.browser.check_attacks [CHROMIUM]

Each attack would mark the document if it ran. That Chromium runs such scripts at all, and that the page's policy alone
holds them, is shown first. It needs Chromium (Debian: `apt-get install chromium`).
"""

import http.server
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubtool.hub.page import preview
from hubtool.release.preview import beside, write_preview
from tests.browser.check_page import run

RAN = "document.documentElement.setAttribute('data-ran','1')"
MARK = 'data-ran="1"'
PLAIN = f"<script>{RAN}</script>"

ATTACKS = (
    f"![x](x%22%20onerror={RAN.replace(' ', '')}%20y=%22.png)",
    "![x](x%22%20onerror=document.documentElement.setAttribute('data-ran','1')%20y=%22)",
    f'<img src="x%22%20onerror={RAN}%20y=%22.png">',
    f'<img src=x onerror="{RAN}">',
    f"<svg onload={RAN}>",
    f"<svg><script>{RAN}</script></svg>",
    f"<math><mtext></p><style><img src=x onerror={RAN}></style></mtext></math>",
    f'<noscript><p title="</noscript><img src=x onerror={RAN}>">',
    f'<table><td style="text-align:left" onmouseover={RAN}><script>{RAN}</script>',
    f'<iframe srcdoc="&lt;script&gt;parent.{RAN}&lt;/script&gt;"></iframe>',
    f"<!--><script>{RAN}</script-->",
    f"</main></body><script>{RAN}</script>",
    PLAIN,
    f'<a href="java\tscript:{RAN}" autofocus onfocus={RAN}>x</a>',
    "![x]({server}/picture.png) <img src='{server}/x.png'> <img src='//{host}/x.png'>",
    "<link rel=stylesheet href='{server}/x.css'><style>@import '{server}/y.css'</style>",
    "<td style='text-align:left;background:url({server}/x)'>x</td><meta http-equiv=refresh content='0;{server}/z'>",
)


def main() -> int:
    """Exit code of the check."""
    chromium = sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory() as folder, listening() as (server, asked):
        page = Path(folder) / "page.html"
        page.write_text(f"<!doctype html><html><body>{PLAIN}</body></html>")
        if MARK not in run(chromium, "light", ["--dump-dom"], page):
            sys.exit("Chromium runs no script at all: nothing can be shown")
        page.write_text(preview("o/m", {}, "x").replace("</main>", f"{PLAIN}<img src='{server}/a.png'></main>"))
        problems = [] if MARK not in run(chromium, "light", ["--dump-dom"], page) else ["the policy holds no script"]
        for attack in ATTACKS:
            card = attack.replace("{server}", server).replace("{host}", server.removeprefix("http://"))
            made = write_preview("o/m", f"---\nlicense: mit\n---\n{card}\n", beside(Path(folder)))
            dom = run(chromium, "light", ["--dump-dom"], made)
            made.unlink()
            if MARK in dom:
                problems.append(f"ran: {attack}")
        problems += [f"asked for: {path}" for path in asked]
    sys.stdout.write("".join(f"{problem}\n" for problem in problems) or f"{len(ATTACKS)} attacks: nothing ran\n")
    return 1 if problems else 0


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
