"""What the guarding process and its child say to each other, as JSON."""

from typing import Literal

import msgspec

PROMPT_TOKENS = 7
"""mlx-lm sorts tokens by expert from 64 of them on, seven tokens times eight experts being fewer: kernels for sorted
tokens may depend on how many experts there are, and a streamed run has only the chosen ones."""


PUBLISHED = "bf16"
"""The recipe that quantizes nothing: FP4 and FP8 are decoded to bfloat16, which is exact, the rest is as published."""


class Task(msgspec.Struct, frozen=True, tag="task"):
    """What a child is to do: climb a rung, or say what MLX runs on."""

    what: Literal["device", "load", "smoke", "smoke-streamed"]
    folder: str
    tokens: int = 0
    trust_remote_code: bool = False


class CompareTask(msgspec.Struct, frozen=True, tag="compare"):
    """A child is to say how far the predictions of variants are from their source's.

    Attributes:
        source: A folder, or `org/name[@revision]` on the Hub.
        folders: Of the variants, likewise.
        text: A local file.
        tokens: How many of its tokens are read.
        context: Tokens of a window.
        together: Windows that go through a layer together.
        state: A folder for what a later run goes on from.
        keep_nbytes: Memory for what layers return; the rest of it goes into files.
        floor: Whether the source is held against itself in bfloat16.
        reference: Where to write the source's distributions in llama.cpp's format, if anywhere.
    """

    source: str
    folders: list[str]
    text: str
    tokens: int
    context: int
    together: int
    state: str
    keep_nbytes: int
    floor: bool = True
    reference: str | None = None


class TaskText(msgspec.Struct, frozen=True):
    """A text to read: a local file, how many of its tokens, and what the record says it is."""

    path: str
    tokens: int
    name: str
    commit: str | None
    sha256: str


class CalibrateTask(msgspec.Struct, frozen=True, tag="calibrate"):
    """A child is to sum up what goes into each matrix of a model while it reads texts.

    Attributes:
        source: A folder, or `org/name[@revision]` on the Hub.
        base_model: What it is, where its files do not tell.
        texts: What it reads.
        context: Tokens of a window.
        together: Windows that go through a layer together.
        state: A folder for what a later run goes on from.
        keep_nbytes: Memory for what layers return; the rest of it goes into files.
        out: The file of statistics.
        sensitivity: Tokens on which it is measured what formats do to the layers' outputs; 0 for none.
    """

    source: str
    base_model: str | None
    texts: list[TaskText]
    context: int
    together: int
    state: str
    keep_nbytes: int
    out: str
    sensitivity: int = 0


AnyTask = Task | CompareTask | CalibrateTask


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


class Compares(msgspec.Struct, frozen=True, tag="compares"):
    """The text is tokens now: so many windows, positions that are scored, and a hash of them."""

    windows: int
    scored: int
    stream_sha256: str


class LayerDone(msgspec.Struct, frozen=True, tag="layer"):
    """So many layers of all are done, and so many bytes of weights were read in this run."""

    number: int
    layers: int
    read_nbytes: int


class Compared(msgspec.Struct, frozen=True, tag="compared"):
    """How far lanes are from the source, by their names: `floor`, `variant0` and so on.

    Attributes:
        figures: By name.
        buckets: Mean divergence by position in the window: the first, the one behind the last, nats.
        experts: By layer, the share of the routed experts that were chosen as by the source.
        read_nbytes: Of weights, in the run that came to the end.
    """

    figures: dict[str, dict[str, float | None]]
    buckets: dict[str, tuple[tuple[int, int, float], ...]]
    experts: dict[str, tuple[tuple[int, float], ...]]
    read_nbytes: int


class Calibrated(msgspec.Struct, frozen=True, tag="calibrated"):
    """Statistics are written: so many inputs, tokens that the least used expert saw, experts that saw none."""

    inputs: int
    tokens: int
    least_tokens: int
    unseen: int
    costs: int


class Peak(msgspec.Struct, frozen=True, tag="peak"):
    """The most memory that the process ever had, as the system knows; said last."""

    nbytes: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It did not."""

    detail: str


Event = Device | Loaded | Token | Done | Compares | LayerDone | Compared | Calibrated | Peak | Failed
