"""Bytes and bits: how they are counted, and how they are written. GB is 10^9 bytes, GiB is 2^30."""

import re

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def effective_bits(nbytes: int, parameters: int) -> float:
    """Bits stored per logical parameter, `8 * nbytes / parameters`: THE definition, unrounded.

    Args:
        nbytes: Bytes of tensors, file headers not counted (the index's `total_size`).
        parameters: Logical parameters: a quantized weight counts unpacked, its scales and biases do not count, an
            integer routing table (`tid2eid`) does.

    Raises:
        ZeroDivisionError: `parameters` is 0.
    """
    return 8 * nbytes / parameters


_UNITS = {"": 1, "B": 1, "KB": KB, "MB": MB, "GB": GB, "TB": TB, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1 << 40}


def parse_nbytes(text: str) -> int:
    """Bytes that a person wrote as `20GB`, `1.5 GiB` or `20000000000`.

    Raises:
        ValueError: It is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size like 20GB or 1.5GiB")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def format_bits(bits: float) -> str:
    """Bits per weight with three decimals, `3.808`."""
    return f"{bits:.3f}"


def format_count(count: int) -> str:
    """An exact count with thousands separators, `284,334,567,511`."""
    return f"{count:,}"


def format_shards(count: int) -> str:
    """A count of files, `1 shard`, `28 shards`."""
    return f"{count:,} shard" + ("s" if count != 1 else "")


def format_nbytes(nbytes: int) -> str:
    """An exact byte count, `135,346,422,876 bytes`."""
    return f"{nbytes:,} bytes"


def format_size(nbytes: int) -> str:
    """A size for reading, decimal with three significant digits or more: `135.35 GB`, `38.2 MB`, `512 bytes`."""
    for unit, name in ((TB, "TB"), (GB, "GB"), (MB, "MB"), (KB, "kB")):
        if nbytes >= unit:
            value = nbytes / unit
            return f"{value:.2f} {name}" if value >= 100 and unit >= GB else f"{value:.3g} {name}"
    return f"{nbytes} bytes"


def format_gib(nbytes: int) -> str:
    """A size in GiB with two decimals, `126.05 GiB`."""
    return f"{nbytes / GIB:.2f} GiB"


def format_parameters(parameters: int) -> str:
    """A parameter count as people say it, `284.3B`, `7.2M`."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{name}"
    return str(parameters)


def format_short_parameters(parameters: int) -> str:
    """A parameter count as the Hub's page shows it, `284B`, `0.4B`, `22.7M`."""
    least = ((10**12, 10**12, "T"), (10**8, 10**9, "B"), (0, 10**6, "M"))
    unit, name = next((unit, name) for start, unit, name in least if parameters >= start)
    value = parameters / unit
    return f"{value:.0f}{name}" if value >= 100 else f"{value:.1f}".removesuffix(".0") + name


def format_seconds(seconds: float) -> str:
    """A duration, `1 h 05 min`, `3 min 20 s`, `12 s`, `0.4 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


MEMORY_SIZES = (16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
"""Unified memory of Macs, in the vendor's GB (which are GiB)."""

USABLE_SHARE = 0.72
"""Share of unified memory that weights and cache may take: Metal recommends a working set of at most three quarters
of it, and activations need some of that."""


def usable_nbytes(size: int) -> int:
    """Bytes that weights and cache may take on a machine of `size` vendor's GB."""
    return int(size * GIB * USABLE_SHARE)


def fits(nbytes: int, size: int) -> bool:
    """Whether weights and cache of `nbytes` leave a machine of `size` vendor's GB room to run."""
    return nbytes <= usable_nbytes(size)
