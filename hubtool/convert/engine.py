"""Makes the pieces of plans, on threads of this process or on any executor; what becomes of them is a sink's matter.

    Task          -> make          -> MadePiece   a top-level function of picklable values: any process can run it
    piece, steps  -> Makers.submit -> Future      made, and handed to a sink's `deliver` on the thread that has it

Several plans over one source are carried out in one pass: a piece is read and decoded once, and what two plans store
alike is made once. Memory is a few pieces for each job, whatever the model's size. The two sinks are `folder`, which
writes pieces at their offsets as they come, and `stream`, which gives the bytes of shards in file order.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from hubtool.checkpoint.open import reopen
from hubtool.checkpoint.source import Source, SourceSpec, stopped
from hubtool.convert.piece import Made, PieceMaker
from hubtool.plan.plan import Piece, Step

T = TypeVar("T")

AHEAD = 2
"""Pieces that are begun and not yet taken, for each job: the next one is at hand when a thread is free."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece to make, in values that travel to another process.

    Attributes:
        source: How the checkpoint is opened there.
        piece: The part of each step that is made.
        steps: Several plans' steps for one parameter, with no more parts of it than the piece has.
        error_rows: Every how many-th row's error is measured; 0 measures none.
    """

    source: SourceSpec
    piece: Piece
    steps: tuple[Step, ...]
    error_rows: int


@dataclass(frozen=True, slots=True)
class MadePiece:
    """What a piece came to.

    Attributes:
        steps: For each step of the task; steps that store alike have the same one.
        unverified: Files of the source of which parts were read by then that no hash was held against.
    """

    steps: tuple[Made, ...]
    unverified: frozenset[str]


def make(task: Task) -> MadePiece:
    """The arrays of a piece, owned by the caller; whichever process runs this opens the source once and keeps it.

    Raises:
        SourceError: The source cannot be opened, or is another one here; a piece cannot be read or is not finite.
        HubError: The source is on the Hub, and cannot be read there.
    """
    made = _make(_open_once(task.source), task.piece, task.steps, task.error_rows)
    owned = {id(each): Made(tuple(np.array(array) for array in each.arrays), each.error) for each in made.steps}
    return MadePiece(tuple(owned[id(each)] for each in made.steps), made.unverified)


def make_task(source: SourceSpec, piece: Piece, steps: Sequence[Step], error_rows: int) -> Task:
    """The task for a piece, without the parts of its parameter that the piece does not touch."""
    if steps[0].parameter.program is not None:
        return Task(source, piece, tuple(steps), error_rows)
    narrow = tuple(_narrowed(step, piece) for step in steps)
    return Task(source, Piece(piece.step, 0, piece.parts, piece.start, piece.stop), narrow, error_rows)


def _narrowed(step: Step, piece: Piece) -> Step:
    parameter = step.parameter
    parts = parameter.parts[piece.first_part : piece.first_part + piece.parts]
    if len(parts) == len(parameter.parts):
        return step
    stacked = parameter.stacked or len(parts) > 1
    shape = (len(parts), *parameter.part_shape) if stacked else parameter.part_shape
    inputs = step.inputs
    if (
        inputs is not None and len(inputs.count) > 1
    ):  # the inputs of a stack's experts, or of groups of each of its parts
        blocks = len(inputs.count) // len(parameter.parts)
        inputs = inputs.narrowed(piece.first_part * blocks, piece.parts * blocks)
    return replace(step, parameter=replace(parameter, parts=parts, shape=shape), inputs=inputs)


def _make(source: Source, piece: Piece, steps: Sequence[Step], error_rows: int) -> MadePiece:
    """The arrays of a piece, in buffers that this thread reuses for its next piece."""
    held = getattr(_HERE, "held", None)
    if held is None or held[:2] != (source, error_rows):
        held = _HERE.held = (source, error_rows, PieceMaker(source, error_rows))
    maker: PieceMaker = held[2]
    return MadePiece(tuple(maker.make(piece, steps)), source.unverified)


_HERE = threading.local()
"""This thread's maker, with its buffers."""

_OPENED: dict[SourceSpec, Source] = {}
_OPENING = threading.Lock()


def _open_once(spec: SourceSpec) -> Source:
    """The source that this process reads for others; one at a time, since a process serves one pass."""
    with _OPENING:
        if spec not in _OPENED:
            _OPENED.clear()
            _OPENED[spec] = reopen(spec)
        return _OPENED[spec]


class Makers:
    """Makes pieces for the time of a `with`, on threads of this process or on an executor.

    Args:
        source: The checkpoint.
        jobs: Pieces that are made at once.
        error_rows: Every how many-th row's error is measured; 0 measures none.
        executor: Makes them elsewhere: processes, or workers on other machines. It stays its owner's.
    """

    def __init__(self, source: Source, jobs: int, error_rows: int, executor: Executor | None = None) -> None:
        self.source = source
        self.jobs = jobs
        self._error_rows = error_rows
        self._executor = executor
        self._elsewhere: set[Future[MadePiece]] = set()
        self._needs: dict[str, set[tuple[int, int]]] = {}
        self._pool = ThreadPoolExecutor(jobs, "hubtool-make")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            # Or a thread that waits for the source, or for another machine, would hold up the shutdown.
            self.source.stop()
            for future in tuple(self._elsewhere):
                future.cancel()
        self._pool.shutdown(cancel_futures=True)

    @property
    def window(self) -> int:
        """How many pieces a sink has begun at most and not taken."""
        return AHEAD * self.jobs

    def submit(self, piece: Piece, steps: Sequence[Step], deliver: Callable[[MadePiece], T]) -> Future[T]:
        """Make a piece; the future is what `deliver` makes of it, on the thread that has it.

        What is handed to `deliver` is good until it returns: it is where the thread's next piece will be.
        """
        return self._pool.submit(self._run, piece, steps, deliver)

    def _run(self, piece: Piece, steps: Sequence[Step], deliver: Callable[[MadePiece], T]) -> T:
        if self._executor is None:
            return deliver(_make(self.source, piece, steps, self._error_rows))
        future = self._executor.submit(make, make_task(self.source.spec, piece, steps, self._error_rows))
        self._elsewhere.add(future)
        try:
            return deliver(future.result())
        except CancelledError as error:
            raise stopped(steps[0].parameter.path) from error
        finally:
            self._elsewhere.discard(future)

    def expect(self, wanted: Iterable[tuple[Piece, Step, Iterable[tuple[int, int]]]]) -> None:
        """Get the source ready for these pieces, in their order.

        Args:
            wanted: Each piece with a step that tells what it reads, and the shards of the output that wait for it.
        """
        for piece, step, shards in wanted:
            for name in step.reads(piece):
                self._needs.setdefault(self.source.tensors[name].file, set()).update(shards)
        if self._executor is None:  # elsewhere it is read there
            self.source.prepare(list(self._needs))

    def finish(self, shard: tuple[int, int]) -> None:
        """A shard of the output is safe: release the files of the source that nothing waits for any more."""
        for file in [file for file, shards in self._needs.items() if shard in shards]:
            self._needs[file].discard(shard)
            if not self._needs[file]:
                del self._needs[file]
                self.source.release(file)
