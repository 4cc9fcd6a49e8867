"""Several models run over the same windows of tokens, layer by layer, so that a run that was ended can go on.

    for each layer, for each model:   its weights are read, all windows go through, its weights are let go

What the layers returned is in memory as far as it may, else in files; every minute all of it is brought to files and
the journal says which layer is done. Nothing of a layer that was not finished counts.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import numpy.typing as npt

from hubtool.errors import SourceError
from hubtool.files.whole import write_beside
from hubtool.worker.forward import Forward, Lane
from hubtool.worker.keep import Budget, Keep
from hubtool.worker.routed import Room

JOURNAL_FILE = "journal.json"

KEEP_SECONDS = 60.0
"""Between two times that everything is brought to files: what a run that is ended loses at most, beside its layer."""

Chosen = Mapping[str, npt.NDArray[np.int32]]
"""Experts that a layer's tokens chose, [tokens, k], by lane; empty where there are none to choose."""

OnLayer = Callable[[int, Chosen], None]
"""Takes a layer that is done and what its tokens chose, before the journal says that it is: it may be called again."""


@dataclass(frozen=True)
class Reader:
    """A model and the lanes that go through it: its weights are read once for all of them."""

    forward: Forward
    lanes: tuple[Lane, ...]


class _Journal(msgspec.Struct, frozen=True):
    """How far a run came: the last layer that is done, of a run of this identity."""

    identity: str
    layer: int


@dataclass(frozen=True)
class State:
    """What outlives a run that was ended.

    Attributes:
        folder: Where the journal and what is kept go. Nobody else's.
        identity: What the run depends on, as a digest: what another one left is not gone on with.
        budget: Memory for what is kept.
    """

    folder: Path
    identity: str
    budget: Budget


class LayerRun:
    """A run of several models over the same tokens.

    Args:
        readers: The models.
        windows: Tokens, [windows, length].
        together: Windows of a batch: they go through a layer together.
        state: What outlives it.
    """

    def __init__(self, readers: Sequence[Reader], windows: npt.NDArray[np.int32], together: int, state: State) -> None:
        depths = {reader.forward.layers for reader in readers}
        if len(depths) > 1:
            raise SourceError(
                "models of different depth",
                where="num_hidden_layers",
                found=", ".join(map(str, sorted(depths))),
                expected="the same for all that are compared",
                remedy="compare variants of one model with their own source",
            )
        self.readers = tuple(readers)
        self.batches = [mx.array(windows[first : first + together]) for first in range(0, len(windows), together)]
        self.layers = depths.pop()
        self._folder = folder = state.folder
        self._identity = state.identity
        folder.mkdir(parents=True, exist_ok=True)
        self.done = self._read_journal()
        if self.done < 0:
            shutil.rmtree(folder)
            folder.mkdir(parents=True)
        self.room = Room(Keep(folder, state.budget), folder / "scratch", state.budget)

    def run(self, on_layer: OnLayer) -> None:
        """Run the layers that are not done."""
        kept = time.monotonic()
        for layer in range(self.done + 1, self.layers):
            chosen: dict[str, npt.NDArray[np.int32]] = {}
            for reader in self.readers:
                chosen |= reader.forward.advance(layer, reader.lanes, self.batches, self.room)
                for key in self._keys(layer - 1, [reader]):
                    # What the journal says is done must be there for the next run.
                    (self.room.keep.release if layer - 1 == self.done else self.room.keep.drop)(key)
            on_layer(layer, chosen)
            last = layer == self.layers - 1
            if last or time.monotonic() - kept > KEEP_SECONDS:
                self.keep(layer)
                kept = time.monotonic()

    def keep(self, layer: int) -> None:
        """Bring what a layer returned to files, and say in the journal that it is done."""
        self.room.keep.persist(self._keys(layer, self.readers))
        write_beside(self._folder / JOURNAL_FILE, msgspec.json.encode(_Journal(self._identity, layer)))
        for key in self._keys(self.done, self.readers):
            self.room.keep.drop(key)
        self.done = layer

    def close(self) -> None:
        """Remove the journal and all that is kept: nothing will go on from here."""
        shutil.rmtree(self._folder)

    def _keys(self, layer: int, readers: Sequence[Reader]) -> list[str]:
        lanes = [lane for reader in readers for lane in reader.lanes]
        return [lane.key(layer, batch) for lane in lanes for batch in range(len(self.batches))]

    def _read_journal(self) -> int:
        try:
            journal = msgspec.json.decode((self._folder / JOURNAL_FILE).read_bytes(), type=_Journal)
        except (FileNotFoundError, msgspec.DecodeError):
            return -1
        return journal.layer if journal.identity == self._identity else -1
