"""What the guarding process and its child say to each other, as JSON."""

from typing import Literal

import msgspec

PROMPT_TOKENS = 7
"""mlx-lm sorts tokens by expert from 64 of them on, seven tokens times eight experts being fewer: kernels for sorted
tokens may depend on how many experts there are, and a streamed run has only the chosen ones."""


class Task(msgspec.Struct, frozen=True):
    """What a child is to do: climb a rung, or say what MLX runs on."""

    what: Literal["device", "load", "smoke", "smoke-streamed"]
    folder: str
    tokens: int = 0
    trust_remote_code: bool = False


class Device(msgspec.Struct, frozen=True, tag="device"):
    """What MLX runs on, and how many bytes it recommends to use of it, if it says.

    It comes when all is there that a model needs: what fails before it is no fault of the model's.
    """

    backend: str
    working_set_nbytes: int | None


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is there, with so many parameters counted."""

    parameters: int


class Token(msgspec.Struct, frozen=True, tag="token"):
    """A token was made; the first has number 1."""

    number: int
    token: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The run came to its end; what is by the token is from one to the next, and None for a single one."""

    tokens: list[int]
    seconds_per_token: float | None
    read_nbytes: int | None = None
    read_per_token_nbytes: int | None = None


class Peak(msgspec.Struct, frozen=True, tag="peak"):
    """The most memory that the process ever had, as the system knows; said last."""

    nbytes: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It did not."""

    detail: str


Event = Device | Loaded | Token | Done | Peak | Failed
