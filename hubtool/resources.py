"""Where the card templates and the recipes lie."""

from pathlib import Path

from hubtool.errors import HubtoolError

_PACKAGE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    """The folder of card templates; HubtoolError if this installation has none."""
    return _find("templates")


def recipes_dir() -> Path:
    """The folder of recipes; HubtoolError if this installation has none."""
    return _find("recipes")


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
