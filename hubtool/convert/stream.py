"""The sink that is a stream: the bytes of shards in file order, of which none ever lies on this disk.

The header of a shard is known in advance, and pieces are taken in file order. Only scales and biases lie behind the
weight whose rows they are made with: those of one module wait in a temporary file.
"""

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from hubtool.convert.engine import MadePiece, Makers
from hubtool.convert.piece import ErrorSums
from hubtool.files.whole import writing
from hubtool.plan.plan import Piece, Plan, Step
from hubtool.units import MIB

COPY_NBYTES = 4 * MIB

Taken = tuple[Mapping[int, bytes], ErrorSums | None]
"""The bytes of those outputs of a piece that were wanted, by their number in the step, and the piece's error."""


class ShardStream:
    """The bytes of a plan's shards, each in file order.

    Args:
        makers: Make the pieces; the source's files are held for these shards until `release`.
        plan: The plan.
        shards: The numbers of those shards that will be asked for, in that order.
        spool: A folder for one module's scales and biases.
    """

    def __init__(self, makers: Makers, plan: Plan, shards: Sequence[int], spool: Path) -> None:
        self._makers = makers
        self._plan = plan
        self._spool = spool
        self._pieces: dict[int, list[tuple[int, Piece]]] = {}
        for number, piece in enumerate(plan.pieces()):
            self._pieces.setdefault(piece.step, []).append((number, piece))
        self._steps = [
            [number for number, step in enumerate(plan.steps) if any(out.shard == index for out in step.outputs)]
            for index in range(len(plan.shards))
        ]
        makers.expect(self._wanted(shards))

    def _wanted(self, shards: Sequence[int]) -> Iterator[tuple[Piece, Step, Iterable[tuple[int, int]]]]:
        for index in shards:
            for number in self._steps[index]:
                for _, piece in self._pieces[number]:
                    yield piece, self._plan.steps[number], [(0, index)]

    def release(self, index: int) -> None:
        """A shard was sent: release the files of the source that none of the others needs."""
        self._makers.finish((0, index))

    def chunks(self, index: int) -> Iterator[tuple[bytes, Mapping[int, ErrorSums]]]:
        """The bytes of a shard in file order, each with the errors of pieces that were measured with it."""
        yield self._plan.shards[index].header, {}
        for step in self._steps[index]:
            yield from self._step_chunks(index, step)

    def _step_chunks(self, index: int, number: int) -> Iterator[tuple[bytes, Mapping[int, ErrorSums]]]:
        """The outputs of a step that lie in a shard: the first straight on, the others spooled until it is whole."""
        step = self._plan.steps[number]
        first, *others = [at for at, output in enumerate(step.outputs) if output.shard == index]
        spools: dict[int, IO[bytes]] = {}
        try:
            for at in others:
                spools[at] = tempfile.TemporaryFile(dir=self._spool)
            for piece, (arrays, error) in self._made(number, [first, *others]):
                for at, spool in spools.items():
                    with writing(self._spool):
                        spool.write(arrays[at])
                yield arrays[first], {} if error is None else {piece: error}
            for spool in spools.values():
                spool.seek(0)
                while chunk := spool.read(COPY_NBYTES):
                    yield chunk, {}
        finally:
            for spool in spools.values():
                spool.close()

    def _made(self, number: int, wanted: Sequence[int]) -> Iterator[tuple[int, Taken]]:
        """Number, wanted outputs and error of the pieces of a step, in order."""

        def take(made: MadePiece) -> Taken:
            (of_step,) = made.steps
            return {at: of_step.views[at].tobytes() for at in wanted}, of_step.error

        waiting: deque[tuple[int, Future[Taken]]] = deque()
        for piece_number, piece in self._pieces[number]:
            waiting.append((piece_number, self._makers.submit(piece, [self._plan.steps[number]], take)))
            if len(waiting) >= self._makers.window:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
