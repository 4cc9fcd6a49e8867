"""Arrays that outlive a batch: kept in memory as far as a budget allows, else in files of a folder.

The files are read and written, never mapped: a mapped page counts as memory of the process for as long as it is there.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from hubtool.convert.quantize import to_numpy


class Budget:
    """Bytes of memory that may still be taken for what is kept."""

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes

    def take(self, nbytes: int) -> bool:
        """Whether there is room for so many bytes, which then are taken."""
        if nbytes > self._left:
            return False
        self._left -= nbytes
        return True

    def give(self, nbytes: int) -> None:
        """Bytes that were taken are free again."""
        self._left += nbytes


class Keep:
    """Lists of arrays by key.

    Args:
        folder: Where those go that do not fit; it is made when it is needed.
        budget: For those that do.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self._folder = folder
        self._budget = budget
        self._held: dict[str, list[mx.array]] = {}

    def put(self, key: str, arrays: Sequence[mx.array]) -> None:
        """Keep arrays, which are evaluated first."""
        self.drop(key)
        mx.eval(*arrays)
        # A view would hold what it was cut from.
        if self._budget.take(sum(array.nbytes for array in arrays)):
            self._held[key] = [mx.contiguous(array) for array in arrays]
            mx.eval(*self._held[key])
        else:
            self._write(key, arrays)

    def get(self, key: str) -> list[mx.array]:
        """The arrays of a key."""
        if key in self._held:
            return self._held[key]
        read: Any = mx.load(str(self._path(key)))
        arrays = [read[str(number)] for number in range(len(read))]
        mx.eval(*arrays)
        return arrays

    def drop(self, key: str) -> None:
        """Let go of a key, if it is there, and of the file that was made of it."""
        self.release(key)
        self._path(key).unlink(missing_ok=True)

    def release(self, key: str) -> None:
        """Let go of what memory holds of a key; the file that was made of it stays."""
        if key in self._held:
            self._budget.give(sum(array.nbytes for array in self._held.pop(key)))

    def persist(self, keys: Sequence[str]) -> None:
        """Make files of these, so that another process finds them."""
        for key in keys:
            if key in self._held:
                self._write(key, self._held[key])

    def _write(self, key: str, arrays: Sequence[mx.array]) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new.safetensors")
        mx.save_safetensors(str(beside), {str(number): array for number, array in enumerate(arrays)})
        beside.replace(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


class Rows:
    """A matrix [rows, width] of which some rows are read or written at a time; bfloat16 as its 16 bits.

    Args:
        path: The file that it is kept in where the budget has no room.
        budget: For keeping it in memory.
        rows: How many.
        width: Elements of a row.
        dtype: Of the elements.
    """

    def __init__(self, path: Path, budget: Budget, rows: int, width: int, dtype: mx.Dtype) -> None:
        self.dtype = dtype
        self._width = width
        self._numpy = np.dtype({mx.bfloat16: np.uint16, mx.float16: np.float16, mx.float32: np.float32}[dtype])
        self._budget = budget
        self._nbytes = rows * width * self._numpy.itemsize
        self._array: npt.NDArray[Any] | None = None
        self._file = -1
        if budget.take(self._nbytes):
            self._array = np.empty((rows, width), self._numpy)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            path.unlink()  # it goes with the process

    def put(self, rows: npt.NDArray[np.intp], values: mx.array) -> None:
        """Write rows."""
        (made,) = to_numpy([values.reshape(-1, self._width).astype(self.dtype)])
        if self._array is not None:
            self._array[rows] = made
            return
        made = np.ascontiguousarray(made)
        for first, stop in _spans(rows):
            os.pwrite(self._file, made[first:stop].data.cast("B"), int(rows[first]) * self._row_nbytes)

    def get(self, rows: npt.NDArray[np.intp]) -> mx.array:
        """Rows [n, width]."""
        if self._array is not None:
            values = self._array[rows]
        else:
            values = np.empty((len(rows), self._width), self._numpy)
            for first, stop in _spans(rows):
                os.preadv(self._file, [values[first:stop].data.cast("B")], int(rows[first]) * self._row_nbytes)
        array = mx.array(values)
        return array.view(mx.bfloat16) if self.dtype == mx.bfloat16 else array

    def close(self) -> None:
        """Let go of all."""
        if self._array is not None:
            self._array = None
            self._budget.give(self._nbytes)
        elif self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def _row_nbytes(self) -> int:
        return self._width * self._numpy.itemsize


def _spans(rows: npt.NDArray[np.intp]) -> list[tuple[int, int]]:
    """Ranges of positions at which the rows follow one another."""
    breaks = (np.flatnonzero(np.diff(rows) != 1) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(rows)], strict=True))
