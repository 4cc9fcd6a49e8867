"""Which machines hold a model: the memory that Macs are sold with, and how much of it a model may take."""

from hubtool import units

MEMORY_SIZES = (16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
"""Unified memory of Macs, in the vendor's GB (which are GiB)."""

USABLE_SHARE = 0.72
"""Share of unified memory that weights and cache may take: Metal recommends a working set of at most three quarters
of it, and activations need some of that."""


def usable_nbytes(size: int) -> int:
    """Bytes that weights and cache may take on a machine of `size` vendor's GB."""
    return int(size * units.GIB * USABLE_SHARE)


def fits(nbytes: int, size: int) -> bool:
    """Whether weights and cache of `nbytes` leave a machine of `size` vendor's GB room to run."""
    return nbytes <= usable_nbytes(size)
