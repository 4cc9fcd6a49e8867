"""Strings of the record as Markdown that shows them and nothing else: no markup, no HTML, no Jinja."""

import html
import re
from urllib.parse import quote

from hubtool.hub.rules import is_repo_id

HUB = "https://huggingface.co"

_MARKUP = re.compile(
    r"[\\`*\[\]{}|~]"  # emphasis, code, links, Jinja, cells, strike-through
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore between two letters or digits is only itself
    r"|^[#>+=-]|^\d+(?=[.)])"  # what begins a block
)


def escape(text: str) -> str:
    """`text` as one line of Markdown that shows it."""
    return _MARKUP.sub(lambda match: _escaped(match[0]), html.escape(one_line(text), quote=False))


def one_line(text: str) -> str:
    """`text` without breaks, and a mark for each character that nobody sees: those can make it look like another."""
    return "".join(each if each.isprintable() else "\ufffd" for each in " ".join(text.split()))


def _escaped(markup: str) -> str:
    return f"{markup}\\" if markup.isdigit() else f"\\{markup}"


def code(text: str) -> str:
    """`text` as a code span, which may stand in a table."""
    line = one_line(text)
    if not line:
        return ""
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")


def link(repo: str, path: str = "", text: str | None = None) -> str:
    """A link to a repo on the Hub, or to `path` of it; only the escaped text where `repo` is no repo's name."""
    shown = escape(text or repo)
    if not is_repo_id(repo):
        return shown
    return f"[{shown}]({HUB}/{repo}{quote(path, safe='/')})"


def fenced(lines: list[str], language: str) -> str:
    """Lines as a block of code."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])
