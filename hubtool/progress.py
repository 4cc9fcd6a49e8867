"""How a run says how it goes: the one protocol between stages and whoever watches them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Takes the steps of one stage: bytes that were done, and of what."""

    def __call__(self, nbytes: int, label: str = "", *, found: bool = False) -> None:
        """Count a step.

        Args:
            nbytes: Bytes that are done now and were not before.
            label: What they are part of, as a person calls it: a file, a parameter, a token.
            found: They were done by an earlier run, and say nothing of the speed of this one.
        """


class Watch(Protocol):
    """Who watches a run: the terminal, a log, or nobody."""

    def stage(self, name: str, total_nbytes: int = 0) -> AbstractContextManager[Advance]:
        """A stage for the time of a `with`, which gives what counts its steps.

        Args:
            name: A verb, after the variant where there are several: `mixed_3_6: send`.
            total_nbytes: Bytes of all its steps together, 0 if it has no measure.
        """

    def say(self, text: str) -> None:
        """A fact that the person should read."""


def uncounted(nbytes: int, label: str = "", *, found: bool = False) -> None:
    """An Advance that nobody watches."""


class Unwatched:
    """A Watch that is nobody."""

    @contextmanager
    def stage(self, name: str, total_nbytes: int = 0) -> Iterator[Advance]:
        """A stage that nobody watches."""
        yield uncounted

    def say(self, text: str) -> None:
        """Nobody reads it."""


UNWATCHED: Watch = Unwatched()


class Named:
    """A Watch whose stages carry a name before their own: which variant of a release they are about.

    Args:
        watch: Who watches.
        name: The variant, as `mixed_3_6`.
    """

    def __init__(self, watch: Watch, name: str) -> None:
        self._watch = watch
        self._name = name

    def stage(self, name: str, total_nbytes: int = 0) -> AbstractContextManager[Advance]:
        """The stage, as `mixed_3_6: send`."""
        return self._watch.stage(f"{self._name}: {name}", total_nbytes)

    def say(self, text: str) -> None:
        """The fact as it is: it names its folder or repo itself."""
        self._watch.say(text)


class HighWater:
    """Counts work that may begin again, so that no byte counts twice: only what lies beyond the highest mark does.

    Any thread may report.

    Args:
        count: Called with the bytes beyond the highest mark so far.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._highest = 0
        self._lock = threading.Lock()

    def reach(self, done: int) -> None:
        """Report that `done` bytes from the beginning are done in this try."""
        with self._lock:
            if done > self._highest:
                self._count(done - self._highest)
                self._highest = done
