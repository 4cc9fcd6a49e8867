"""What tokens bring to the routed experts of a layer, and what they take away, for all windows of a lane."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from hubtool.worker.keep import Budget, Keep, Rows

MOST_ROWS = 4096
"""Rows that meet an expert at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Room:
    """Where things are kept: outputs of layers by key, rows for experts in files, and the memory for both."""

    keep: Keep
    scratch: Path
    budget: Budget


class Routed:
    """The tokens of all batches at the routed experts of one layer.

    Args:
        name: Of the lane, for files.
        sizes: Tokens of each batch.
        k: Experts that a token chooses.
        room: Where they are kept.

    Attributes:
        indices: Experts that each token chose, [tokens, k].
    """

    def __init__(self, name: str, sizes: Sequence[int], k: int, room: Room) -> None:
        self._name = name
        self._room = room
        self._ends = np.cumsum([0, *sizes])
        tokens = int(self._ends[-1])
        self.indices: npt.NDArray[np.int32] = np.empty((tokens, k), np.int32)
        self._inputs: Rows | None = None
        self._outputs: Rows | None = None
        self._order: npt.NDArray[np.intp] | None = None
        self._chosen: npt.NDArray[np.int32] = self.indices

    def add(self, batch: int, x: mx.array, indices: mx.array) -> None:
        """Take a batch's input [B, S, width] and the experts that its tokens chose, [B, S, k]."""
        first, stop = self._span(batch)
        self.indices[first:stop] = np.array(indices.astype(mx.int32)).reshape(-1, self.indices.shape[1])
        if self._inputs is None:
            path = self._room.scratch / f"{self._name}-in"
            self._inputs = Rows(path, self._room.budget, len(self.indices), x.shape[-1], x.dtype)
        self._inputs.put(np.arange(first, stop), x)

    def numbers(self) -> list[int]:
        """Experts that were chosen."""
        return [int(number) for number in np.unique(self.indices)]

    def meet(self, number: int, expert: Callable[[mx.array], mx.array]) -> None:
        """Let an expert make [n, out] of the rows [n, width] of the tokens that chose it."""
        assert self._inputs is not None
        if self._order is None:
            self._order = np.argsort(self.indices.reshape(-1), kind="stable")
            self._chosen = self.indices.reshape(-1)[self._order]
        first, stop = np.searchsorted(self._chosen, [number, number + 1])
        for start in range(int(first), int(stop), MOST_ROWS):
            positions = self._order[start : min(start + MOST_ROWS, int(stop))]
            made = expert(self._inputs.get(positions // self.indices.shape[1]))
            if self._outputs is None:
                path = self._room.scratch / f"{self._name}-out"
                self._outputs = Rows(path, self._room.budget, self.indices.size, made.shape[-1], made.dtype)
            self._outputs.put(positions, made)

    def output(self, batch: int, shape: Sequence[int]) -> mx.array:
        """What the experts made for a batch of tokens [B, S]: [B, S, k, out]."""
        assert self._outputs is not None
        first, stop = self._span(batch)
        k = self.indices.shape[1]
        return self._outputs.get(np.arange(first * k, stop * k)).reshape(*shape, k, -1)

    def close(self) -> None:
        """Let go of inputs and outputs."""
        for rows in (self._inputs, self._outputs):
            if rows is not None:
                rows.close()

    def _span(self, batch: int) -> tuple[int, int]:
        return int(self._ends[batch]), int(self._ends[batch + 1])


def ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with what the function makes of it; the next one is made while the caller works on one."""
    with ThreadPoolExecutor(1, thread_name_prefix="hubtool-read") as pool:
        coming = pool.submit(function, items[0]) if items else None
        for number, item in enumerate(items):
            assert coming is not None
            made = coming.result()
            coming = pool.submit(function, items[number + 1]) if number + 1 < len(items) else None
            yield item, made
            del made
