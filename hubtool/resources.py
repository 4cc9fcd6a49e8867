"""Where the card templates and the recipes lie, and what a recipe's text is with the base that it names."""

import re
import tomllib
from pathlib import Path

from hubtool.errors import HubtoolError

_PACKAGE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    """The folder of card templates; HubtoolError if this installation has none."""
    return _find("templates")


def recipes_dir() -> Path:
    """The folder of recipes; HubtoolError if this installation has none."""
    return _find("recipes")


_BASE = re.compile(r'^base[ \t]*=[ \t]*"(\w+)"[ \t]*\n', re.MULTILINE)


def base_names() -> tuple[str, ...]:
    """Names of the bases that recipes share: rules that follow a recipe's own, with bits by the names it gives."""
    return tuple(sorted(path.stem for path in (recipes_dir() / "base").glob("*.toml")))


def with_base(text: str) -> str:
    """A recipe's TOML text with the rules of the base that it names, so that it needs no other file.

    It is as it was if it names none; if it names one that does not come with hubtool, or is not TOML.
    """
    match = _BASE.search(text)
    if match is None or match[1] not in base_names():
        return text
    own = text[: match.start()] + text[match.end() :]
    try:
        without = {key: value for key, value in tomllib.loads(text).items() if key != "base"}
        if without != tomllib.loads(own):
            return text
    except (ValueError, RecursionError):
        return text
    base = (recipes_dir() / "base" / f"{match[1]}.toml").read_text(encoding="utf-8")
    return f"{own.rstrip()}\n\n{base}"


def _find(name: str) -> Path:
    """The folder `name` inside the package (a wheel) or else beside it (a checkout, an unpacked sdist).

    Beside the package counts only next to our pyproject.toml: in site-packages that folder would be someone else's.
    """
    installed, checkout = _PACKAGE / name, _PACKAGE.parent
    if installed.is_dir():
        return installed
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise HubtoolError(
        "this installation of hubtool is incomplete",
        where=_PACKAGE,
        found=f"no folder {name}",
        expected=f"{installed} or {checkout / name}",
        remedy="install hubtool again",
    )
