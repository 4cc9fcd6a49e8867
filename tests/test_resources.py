"""templates/ and recipes/ are found from a wheel, an sdist, a wheel built from the sdist, and a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hubtool import resources
from hubtool.errors import HubtoolError

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDERS = ("recipes", "templates")


def hatchling(root: Path, target: str, out: Path) -> Path:
    """The one file that hatchling builds from `root`."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    (built,) = out.iterdir()
    return built


def found_from(root: Path, cwd: Path) -> dict[str, Path]:
    """What a fresh interpreter with `root` first on its path finds."""
    script = "from hubtool import resources as r; print(r.recipes_dir(), r.templates_dir(), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=environment, check=True, capture_output=True, text=True
    )
    return dict(zip(FOLDERS, map(Path, done.stdout.splitlines()), strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones aside."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist of this checkout."""
    archive = hatchling(CHECKOUT, "sdist", tmp_path_factory.mktemp("sdist"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(unpacked)], check=True)
    (root,) = unpacked.iterdir()
    return root


def unpacked_wheel(root: Path, tmp_path: Path) -> Path:
    """A folder as site-packages would hold the wheel of `root`."""
    wheel = hatchling(root, "wheel", tmp_path / "dist")
    site_packages = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    return site_packages


def test_checkout_finds_its_own_folders() -> None:
    assert resources.recipes_dir() == CHECKOUT / "recipes"
    assert resources.templates_dir() == CHECKOUT / "templates"
    for folder in FOLDERS:
        assert contents(CHECKOUT / folder)


def test_wheel_carries_the_folders_of_the_checkout(tmp_path: Path) -> None:
    site_packages = unpacked_wheel(CHECKOUT, tmp_path)
    for name, folder in found_from(site_packages, tmp_path).items():
        assert folder == site_packages / "hubtool" / name
        assert contents(folder) == contents(CHECKOUT / name)


def test_unpacked_sdist_finds_its_own_folders(sdist: Path, tmp_path: Path) -> None:
    for name, folder in found_from(sdist, tmp_path).items():
        assert folder == sdist / name
        assert contents(folder) == contents(CHECKOUT / name)


def test_wheel_built_from_the_sdist_equals_the_wheel_of_the_checkout(sdist: Path, tmp_path: Path) -> None:
    from_sdist = hatchling(sdist, "wheel", tmp_path / "from_sdist")
    from_checkout = hatchling(CHECKOUT, "wheel", tmp_path / "from_checkout")
    assert from_sdist.name == from_checkout.name
    assert from_sdist.read_bytes() == from_checkout.read_bytes()


def test_wheel_holds_nothing_but_the_package(tmp_path: Path) -> None:
    tops = {path.name for path in unpacked_wheel(CHECKOUT, tmp_path).iterdir()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"hubtool"}


def test_editable_install_only_points_at_the_checkout(tmp_path: Path) -> None:
    with zipfile.ZipFile(hatchling(CHECKOUT, "wheel:editable", tmp_path)) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {"_hubtool.pth": os.fsencode(CHECKOUT)}


def test_sdist_holds_what_the_tests_and_the_demo_need(sdist: Path) -> None:
    names = {path.name for path in sdist.iterdir()}
    assert names >= {
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "pyproject.toml",
        "requirements.txt",
        "tests",
        *FOLDERS,
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_installation_without_a_folder_says_which_and_what_to_do(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "hubtool"
    shutil.copytree(CHECKOUT / "recipes", package / "recipes")
    shutil.copytree(CHECKOUT / "templates", package / "templates")
    shutil.rmtree(package / folder)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    find = {"recipes": resources.recipes_dir, "templates": resources.templates_dir}
    with pytest.raises(HubtoolError, match=f"no folder {folder}.*install hubtool again"):
        find.pop(folder)()
    (other,) = find.values()
    assert other().is_relative_to(package)


def test_folder_beside_an_installed_package_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "hubtool")
    with pytest.raises(HubtoolError, match="no folder recipes"):
        resources.recipes_dir()
