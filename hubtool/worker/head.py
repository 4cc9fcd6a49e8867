"""What follows the layers: the models' heads meet what the layers returned, a slice of the vocabulary at a time."""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from hubtool.units import MB
from hubtool.worker.compare import Distance, Distribution, Divergence
from hubtool.worker.forward import Forward, Lane
from hubtool.worker.layers import LayerRun

SLICES_NBYTES = 128 * MB
"""What the slices of all heads take together, decoded."""

DECODED_NBYTES = 6
"""Of a weight while it is multiplied with: bfloat16, and the same as float32."""

POSITIONS = 512
"""Positions whose logits are compared at once."""


@dataclass(frozen=True)
class Scored:
    """Which positions count: the second half of each window, but for the last, whose next token is not there.

    Attributes:
        windows: Tokens, [windows, length].
    """

    windows: npt.NDArray[np.int32]

    @property
    def first(self) -> int:
        """Position in its window of the first that counts."""
        return int(self.windows.shape[1]) // 2

    @property
    def shape(self) -> tuple[int, int]:
        """Windows, and positions of each."""
        windows, length = self.windows.shape
        return int(windows), int(length) - 1 - self.first

    @property
    def following(self) -> npt.NDArray[np.int32]:
        """The token after each position, [positions]."""
        return np.ascontiguousarray(self.windows[:, self.first + 1 :]).reshape(-1)


class Heads:
    """The heads of all lanes of a run, whose layers are done.

    Args:
        run: The run.
        scored: Which positions count.
        advance: Called when a slice is done.
    """

    def __init__(self, run: LayerRun, scored: Scored, advance: Callable[[], None]) -> None:
        self._run = run
        self._scored = scored
        self._advance = advance
        self.distributions = {lane.name: Distribution(scored.following) for _, lane in self._lanes()}
        for forward, lane in self._lanes():
            for batch, tokens in enumerate(run.batches):
                x = forward.head_inputs(lane, batch, tokens, run.room)[:, scored.first : -1]
                run.room.keep.put(_key(lane, batch), [x.flatten(0, 1)])

    def _lanes(self) -> Iterator[tuple[Forward, Lane]]:
        for reader in self._run.readers:
            for lane in reader.lanes:
                yield reader.forward, lane

    def compare(self, source: str) -> Mapping[str, Distance]:
        """The distance of each lane from the source's, by its name."""
        positions = len(self._scored.following)
        divergences = {lane.name: Divergence(positions) for _, lane in self._lanes() if lane.name != source}
        known = self.distributions
        for first, at, logits in self._slices([reader.forward for reader in self._run.readers]):
            scale, exponentials = known[source].add(at, first, logits[source])
            for name, divergence in divergences.items():
                known[name].add(at, first, logits[name])
                divergence.add(at, scale, exponentials, logits[source] - logits[name])
        shape = self._scored.shape
        return {
            name: Distance(
                kl=divergence.nats(known[source], known[name]).reshape(shape),
                agrees=(known[source].likeliest == known[name].likeliest).reshape(shape),
                surprise=known[name].surprise.reshape(shape),
                source_surprise=known[source].surprise.reshape(shape),
            )
            for name, divergence in divergences.items()
        }

    def save_reference(self, source: str, path: Path) -> None:
        """Write the source's distributions in llama.cpp's base format; its head is read a second time for it.

        `_logits_`, int32 context, vocabulary and windows, the tokens, then for each scored position two floats, the
        scale and the least log-probability, and uint16 for each token; what is more than 16 nats below the top is cut
        (log_softmax and process_logits of tools/perplexity/perplexity.cpp).
        """
        known, windows = self.distributions[source], self._scored.windows
        reader = next(reader for reader in self._run.readers if source in [lane.name for lane in reader.lanes])
        vocabulary = reader.forward.vocabulary
        least = np.maximum(known.bottom, known.top - 16).astype(np.float32)
        scale = ((known.top - least) / 65535).astype(np.float32)
        row_nbytes = 2 * (2 * ((vocabulary + 1) // 2) + 4)
        with path.open("wb") as file:
            file.write(b"_logits_" + struct.pack("<iii", windows.shape[1], vocabulary, len(windows)))
            file.write(windows.astype("<i4").tobytes())
            begin = file.tell()
            file.truncate(begin + row_nbytes * len(known.top))
            for position, floats in enumerate(zip(scale, least - known.log_sum, strict=True)):
                file.seek(begin + row_nbytes * position)
                file.write(struct.pack("<ff", *floats))
            for first, at, logits in self._slices([reader.forward]):
                above = np.array(logits[source]) - least[at, None]
                steps = np.divide(above, scale[at, None], where=scale[at, None] > 0, out=np.zeros_like(above))
                codes = np.clip(np.rint(steps), 0, 65535).astype("<u2")
                for position, row in zip(range(at.start, at.stop), codes, strict=True):
                    file.seek(begin + row_nbytes * position + 8 + 2 * first)
                    file.write(row.tobytes())

    def _slices(self, forwards: Sequence[Forward]) -> Iterator[tuple[int, slice, dict[str, mx.array]]]:
        """First token of a slice, positions, and their logits [n, slice] by lane: every slice meets all positions."""
        lanes = [(forward, lane) for forward, lane in self._lanes() if forward in forwards]
        rows = self._rows(forwards)
        vocabulary = forwards[0].vocabulary
        for first in range(0, vocabulary, rows):
            for forward in forwards:
                forward.open_head(first, min(vocabulary, first + rows))
            begin = 0
            for batch in range(len(self._run.batches)):
                kept = {lane.name: self._run.room.keep.get(_key(lane, batch))[0] for _, lane in lanes}
                for start in range(0, len(kept[lanes[0][1].name]), POSITIONS):
                    logits = {
                        lane.name: forward.logits(kept[lane.name][start : start + POSITIONS], lane.dtype)
                        for forward, lane in lanes
                    }
                    mx.eval(*logits.values())
                    stop = begin + len(next(iter(logits.values())))
                    yield first, slice(begin, stop), logits
                    begin = stop
            self._advance()
        for forward in forwards:
            forward.close_head()

    def _rows(self, forwards: Sequence[Forward]) -> int:
        """Rows of a slice."""
        lane = next(self._lanes())[1]
        width: int = self._run.room.keep.get(_key(lane, 0))[0].shape[-1]
        return max(256, SLICES_NBYTES // (DECODED_NBYTES * width * len(forwards)) // 256 * 256)


def _key(lane: Lane, batch: int) -> str:
    return f"head/{lane.name}-{batch}"
