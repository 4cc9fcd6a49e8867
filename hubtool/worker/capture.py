"""What goes into each matrix of a model while it reads a text, summed up in one fixed order."""

from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from hubtool.checkpoint.statistics import Sums
from hubtool.files.whole import write_beside

ROWS = 256
"""Rows that are squared at once: in float64 they are a few megabytes."""

GROUPED = 4
"""Dimensions of an input [B, S, G, in] whose groups each meet their own rows of the weight."""


class Capture:
    """Sums of squares and counts of each matrix's inputs: an observer of `Forward`.

    Args:
        experts: How many experts the stack at a path has.
        grouped: Whether the rows of the matrix at a path are shared by groups of its input.

    Attributes:
        sums: By path, since the last `take`.
    """

    def __init__(self, experts: Callable[[str], int], grouped: Callable[[str], bool]) -> None:
        self.sums: dict[str, Sums] = {}
        self._experts = experts
        self._grouped = grouped
        self._last: tuple[mx.array, npt.NDArray[np.float64]] | None = None

    def __call__(self, path: str, expert: int | None, x: mx.array) -> None:
        """Take the rows [.., in] that a matrix is about to multiply, of one expert's where it is one of a stack."""
        groups = x.shape[-2] if x.ndim == GROUPED and self._grouped(path) else 1
        blocks = groups if expert is None else self._experts(path)
        if path not in self.sums:
            self.sums[path] = Sums(np.zeros(blocks, np.int64), np.zeros((blocks, x.shape[-1])))
        sums = self.sums[path]
        block = slice(None) if expert is None else slice(expert, expert + 1)
        sums.squares[block] += self._squares(x, groups)
        sums.count[block] += x.size // (groups * x.shape[-1])

    def _squares(self, x: mx.array, groups: int) -> npt.NDArray[np.float64]:
        """Sums of squares [groups, in]; those of the last input are remembered: two projections often share it."""
        if self._last is None or self._last[0] is not x:
            rows = np.array(x.astype(mx.float32), copy=False).reshape(-1, groups, x.shape[-1])
            total = np.zeros(rows.shape[1:])
            for start in range(0, len(rows), ROWS):
                total += np.square(rows[start : start + ROWS], dtype=np.float64).sum(axis=0)
            self._last = x, total
        return self._last[1]

    def take(self) -> Mapping[str, Sums]:
        """What was summed up, which is forgotten here."""
        taken, self.sums, self._last = self.sums, {}, None
        return taken


def save_sums(path: Path, sums: Mapping[str, Sums]) -> None:
    """Write sums, in float64, whole or not at all."""
    arrays = {f"{module}/{name}": array for module, each in sums.items() for name, array in vars(each).items()}
    write_beside(path, save(arrays))


def load_sums(path: Path) -> Mapping[str, Sums]:
    """What `save_sums` wrote."""
    arrays = load(path.read_bytes())
    modules = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
    return {module: Sums(arrays[f"{module}/count"], arrays[f"{module}/squares"]) for module in modules}
