"""What pyproject.toml declares is what the package imports, and what requirements.txt pins."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PINS = (CHECKOUT / "requirements.txt").read_text()


def normalized(requirement: str) -> str:
    """The distribution that a requirement names, as indexes spell it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(*extras: str) -> set[str]:
    """The distributions that an installation with these extras asks for by name."""
    optional = PROJECT["project"]["optional-dependencies"]
    requirements = PROJECT["project"]["dependencies"] + [each for extra in extras for each in optional[extra]]
    return {normalized(requirement) for requirement in requirements}


def imported(files: list[Path]) -> set[str]:
    """Top-level names that these files import, at the top or inside a function, the standard library's aside."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"hubtool"}


@pytest.mark.parametrize(
    ("rehearsal", "extras"), [(False, ("plots", "sign")), (True, ("rehearse",))], ids=["the tool", "the rehearsal Hub"]
)
def test_every_import_is_a_declared_dependency(rehearsal: bool, extras: tuple[str, ...]) -> None:
    package = CHECKOUT / "hubtool"
    files = [path for path in package.rglob("*.py") if path.is_relative_to(package / "rehearsal") == rehearsal]
    distributions = packages_distributions()
    undeclared = {
        name
        for name in imported(files)
        if not declared(*extras) & {normalized(each) for each in distributions.get(name, [name])}
    }
    assert not undeclared


def test_every_dependency_of_the_demo_and_the_tests_is_pinned() -> None:
    pinned = {normalized(line) for line in PINS.splitlines() if re.match(r"[a-z0-9]", line)}
    wanted = declared("cpu", "rehearse") | {normalized(each) for each in PROJECT["dependency-groups"]["dev"]}
    assert wanted <= pinned


def test_pins_name_no_address_and_carry_hashes() -> None:
    assert "://" not in PINS
    for pin in re.split(r"\n(?=[a-z0-9])", PINS)[1:]:
        assert re.match(r"[a-z0-9.-]+(\[\w+\])?==\S+.*\n +--hash=sha256:[0-9a-f]{64}", pin), pin


def test_linux_gets_one_backend_of_mlx_and_macos_its_own() -> None:
    backends = re.findall(r"^(mlx-(?:cpu|metal|cuda\S*))==\S+(.*?)(?: \\)?$", PINS, flags=re.MULTILINE)
    assert dict(backends) == {"mlx-cpu": " ; sys_platform == 'linux'", "mlx-metal": " ; sys_platform == 'darwin'"}
