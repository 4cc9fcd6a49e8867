"""What hubtool takes of huggingface_hub and hf_xet beyond their promises is there, and is taken in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

import hubtool
from hubtool.hub import private

PACKAGE = Path(hubtool.__file__).parent
BORDER = PACKAGE / "hub/private.py"

LIBRARIES = ("huggingface_hub", "hf_xet")

UNDOCUMENTED = {"huggingface_hub.lfs"}
"""Modules without an underscore that no documentation names."""


def test_every_private_name_is_there() -> None:
    assert private.missing() == []


def test_a_name_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.delattr(HfApi, "_build_hf_headers")
    monkeypatch.delattr(private.hf_xet(), "XetStreamUpload")
    gone = ["huggingface_hub:HfApi._build_hf_headers", "hf_xet:XetStreamUpload.write", "hf_xet:XetStreamUpload.finish"]
    assert private.missing() == gone


def test_what_is_reached_through_objects_is_listed_where_it_is_used() -> None:
    used = {node.attr for node in ast.walk(ast.parse(BORDER.read_text())) if isinstance(node, ast.Attribute)}
    listed = {name.rpartition(":")[2].rpartition(".")[2] for name in private.BORROWED}
    assert {name for name in used if name.startswith("_") and not name.startswith("__")} <= listed


def _taken(tree: ast.Module) -> Iterator[str]:
    """The private modules and names of the two libraries that a module imports or reaches."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            path = f"{node.module}.{{}}"
            yield from (path.format(alias.name) for alias in node.names if _is_private(path.format(alias.name)))
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in LIBRARIES and _is_private(a.name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (ast.unparse(arg) for arg in node.args if any(name in ast.unparse(arg) for name in LIBRARIES))
        elif isinstance(node, ast.Attribute) and node.attr in _BORROWED_PRIVATE:
            yield ast.unparse(node)


_BORROWED_PRIVATE = {
    last for name in private.BORROWED if (last := name.rpartition(":")[2].rpartition(".")[2]).startswith("_")
}


def _is_private(path: str) -> bool:
    parts = path.split(".")
    return parts[0] == "hf_xet" or any(part.startswith("_") for part in parts) or ".".join(parts[:2]) in UNDOCUMENTED


def test_no_other_module_touches_a_private_name() -> None:
    taken = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != BORDER and (names := sorted(_taken(ast.parse(path.read_text()))))
    }
    assert taken == {}


@pytest.mark.parametrize(
    "line",
    [
        "from huggingface_hub.utils import _http",
        "from huggingface_hub.utils._xet import get_xet_session",
        "from huggingface_hub._local_folder import read_download_metadata",
        "from huggingface_hub.lfs import UploadInfo",
        "import huggingface_hub.utils._http",
        "import hf_xet",
        "importlib.import_module('hf_xet')",
        "api._build_hf_headers()",
        "addition._upload_mode = 'lfs'",
    ],
)
def test_such_a_line_would_be_noticed(line: str) -> None:
    assert list(_taken(ast.parse(line)))
