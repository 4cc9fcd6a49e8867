"""Looks at a card's page in headless Chromium: nothing overflows, every picture loads; light and dark, wide and narrow.

    python -m tests.browser.check_page OUT [CHROMIUM]

writes page.html and four screenshots to OUT, and exits 1 if something is wrong. It needs the extras `rehearse` and
`plots`, and Chromium (Debian: `apt-get install chromium`).
"""

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from hubtool.card import render_card
from hubtool.card.pictures import draw
from hubtool.record import ASSETS_PREFIX
from hubtool.release.preview import beside, write_preview
from hubtool.sample import FLASH
from tests.card.records import OUTCOMES, REPO, SEED_NOTES, full_size_record, with_evidence, with_layer_errors
from tests.checkpoints import write_sparse_checkpoint

WIDTHS = (1280, 390)
SCHEMES = {"light": 1, "dark": 0}
"""Blink's numbers for `prefers-color-scheme`."""

# Chromium's window is never as narrow as a telephone; a frame in it is.
FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe id="page" width="{width}" height="{height}" srcdoc="{page}"></iframe>
<pre id="report" hidden></pre>
<script>
const frame = document.getElementById("page")
const report = () => {{
  const page = frame.contentDocument, width = frame.clientWidth
  const scrolls = (element) => {{
    for (let each = element.parentElement; each; each = each.parentElement)
      if (/auto|scroll|hidden/.test(frame.contentWindow.getComputedStyle(each).overflowX)) return true
    return false
  }}
  const wide = [...page.body.querySelectorAll("*")].filter(
    (element) => element.getBoundingClientRect().right > width + 1 && !scrolls(element))
  document.getElementById("report").textContent = JSON.stringify({{
    width, scrollWidth: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
    overflowing: wide.map((element) => element.outerHTML.slice(0, 120)),
    broken: [...page.images].filter((image) => !image.complete || !image.naturalWidth).map((image) => image.alt),
    pictures: page.images.length, tables: page.querySelectorAll("table").length,
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  }})
}}
frame.addEventListener("load", report)
if (frame.contentDocument && frame.contentDocument.readyState === "complete") report()
</script>"""


def main() -> int:
    """Exit code of the check."""
    out = Path(sys.argv[1])
    chromium = sys.argv[2] if len(sys.argv) > 2 else shutil.which("chromium") or "chromium"
    out.mkdir(parents=True, exist_ok=True)
    page = make_page(out)
    problems = [
        problem
        for width, scheme in product(WIDTHS, SCHEMES)
        for problem in look(chromium, page, out / f"{scheme}-{width}.png", width, scheme)
    ]
    sys.stdout.write("".join(f"{problem}\n" for problem in problems) or "every page holds\n")
    return 1 if problems else 0


def make_page(out: Path) -> Path:
    """The page of a card with everything that a card can have."""
    with tempfile.TemporaryDirectory() as folder:
        record = full_size_record(write_sparse_checkpoint(Path(folder) / "flash", FLASH))
    record = with_evidence(with_layer_errors(record), *OUTCOMES["streamed"], *OUTCOMES["aborted"])
    pictures = draw(record)
    for name, picture in pictures.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(picture)
    card = render_card(record, prose={"notes": SEED_NOTES}, assets=tuple(pictures))
    (out / "README.md").write_text(card)
    made = write_preview(REPO, card, beside(out))
    return made.replace(out / "page.html")


def look(chromium: str, page: Path, picture: Path, width: int, scheme: str) -> list[str]:
    """What is wrong with a page at a width and in a scheme; its screenshot is taken."""
    report = measure(chromium, page, width, 2000, scheme)
    frame = write_frame(page, width, report["height"])
    size = f"--window-size={max(width, 500)},{report['height']}"
    run(chromium, scheme, [size, f"--screenshot={picture}"], frame)
    where = f"{width} px, {scheme}"
    problems = [f"{where}: overflows: {element}" for element in report["overflowing"]]
    problems += [f"{where}: picture does not load: {alt}" for alt in report["broken"]]
    if report["scrollWidth"] > report["width"]:
        problems.append(f"{where}: the page is {report['scrollWidth']} px wide")
    if report["pictures"] != len(list(page.parent.glob(f"{ASSETS_PREFIX}*.png"))) or not report["tables"]:
        problems.append(f"{where}: {report['pictures']} pictures, {report['tables']} tables")
    if report["dark"] != (scheme == "dark"):
        problems.append(f"{where}: the scheme is not taken: {report['background']}")
    return problems


def measure(chromium: str, page: Path, width: int, height: int, scheme: str) -> Any:
    """What the frame's script reports of a page."""
    frame = write_frame(page, width, height)
    dom = run(chromium, scheme, [f"--window-size={max(width, 500)},{height}", "--dump-dom"], frame)
    match = re.search(r'<pre id="report" hidden="">(.*?)</pre>', dom, re.DOTALL)
    assert match and match[1], "Chromium gave no report"
    return json.loads(html.unescape(match[1]))


def write_frame(page: Path, width: int, height: int) -> Path:
    """A page with a frame of that size, in which the other page lies."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, height=height, page=html.escape(page.read_text())))
    return frame


def run(chromium: str, scheme: str, options: list[str], page: Path) -> str:
    """What headless Chromium writes to its standard output."""
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"),
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        *options,
        page.absolute().as_uri(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


if __name__ == "__main__":
    sys.exit(main())
