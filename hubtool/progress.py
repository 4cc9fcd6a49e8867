"""How a run says how it goes: the one protocol between stages and whoever watches them."""

from contextlib import AbstractContextManager
from typing import Protocol


class Advancing(Protocol):
    """Takes bytes that are done and a label; `found` are those of an earlier run, which say nothing of the speed."""

    def __call__(self, nbytes: int, label: str, *, found: bool = False) -> None:
        """A step forward."""


class Watch(Protocol):
    """Who is told how a run goes; the terminal, a log, or nobody."""

    def stage(self, name: str, total_nbytes: int = 0) -> AbstractContextManager[Advancing]:
        """A stage for the time of a `with`; it gives what takes its steps."""

    def say(self, text: str) -> None:
        """A fact that the person should read."""
