"""What this machine is, without saying whose: for evidence, and for what it can validate."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import hubtool
from hubtool.guard.memory import capacity, sysctl_text
from hubtool.record import MachineRecord

UNKNOWN = "unknown"


def this_machine() -> MachineRecord:
    """Model, chip, memory in bytes, and system; never a host or user name."""
    if sys.platform == "darwin":
        model, chip = sysctl_text("hw.model"), sysctl_text("machdep.cpu.brand_string")
        system = f"macOS {platform.mac_ver()[0]}"
    else:
        model = _first_line("/sys/class/dmi/id/product_name") or _first_line("/proc/device-tree/model")
        chip = _processor()
        system = f"{_distribution()}, {platform.system()} {platform.release().split('-')[0]}"
    return MachineRecord(
        model=model or f"{platform.machine()} machine",
        chip=chip or platform.machine(),
        memory_nbytes=capacity().total_nbytes,
        system=system,
    )


def _first_line(path: str) -> str | None:
    try:
        lines = Path(path).read_text(errors="replace").rstrip("\0\n").splitlines()
    except OSError:
        return None
    return lines[0].strip() if lines else None


def _processor() -> str | None:
    """The processor's name and how many threads it runs."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else None


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return UNKNOWN


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """hubtool, Python and some libraries with their versions, without importing them."""
    found = {"hubtool": hubtool.__version__}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version()}
