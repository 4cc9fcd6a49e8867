"""What a quantizer may know of some rows beside their values."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hubtool.plan.plan import Piece, Step

Moments = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hints:
    """What calibration and the source say of some rows of a matrix.

    Attributes:
        moments: What each input channel is worth: the mean square of its inputs, float32 [in]; None if not known.
        from_fp4: Whether the source stores the rows in FP4.
    """

    moments: Moments | None = None
    from_fp4: bool = False


class PieceHints:
    """The hints for a piece of a step whose input is known: the rows of a stack's experts have inputs of their own.

    Args:
        step: The step.
        piece: Its piece.
    """

    def __init__(self, step: Step, piece: Piece) -> None:
        assert step.inputs is not None, step.parameter.path
        self._block_rows = step.rows * len(step.parameter.parts) // len(step.inputs.count)
        self._first = piece.first_part * step.rows + piece.start
        self._block = self._first // self._block_rows
        last = -(-(self._first + piece.rows) // self._block_rows)
        self._moments = step.inputs.moments(self._block, last)
        self._from_fp4 = step.parameter.encoding == "fp4"

    @classmethod
    def known(cls, step: Step, piece: Piece) -> "PieceHints | None":
        """Hints for a piece, None where nothing is known of the step's input."""
        return None if step.inputs is None else cls(step, piece)

    def runs(self, start: int, stop: int) -> Iterator[tuple[slice, Hints]]:
        """Rows `start` to `stop` of the piece, counted from `start`, in runs that share their hints."""
        first = start
        while first < stop:
            block = (self._first + first) // self._block_rows
            last = min(stop, (block + 1) * self._block_rows - self._first)
            yield slice(first - start, last - start), Hints(self._moments[block - self._block], self._from_fp4)
            first = last

    def moments(self, rows: range) -> Moments:
        """What each channel is worth to these rows of the piece, [rows, in]; [1, in] where that is the same to all."""
        blocks = (self._first + np.array(rows)) // self._block_rows - self._block
        moments: Moments = self._moments[blocks[:1] if len(set(blocks.tolist())) == 1 else blocks]
        return moments
