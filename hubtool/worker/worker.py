"""What a guarded child process does: `python -m hubtool.worker.worker TASK`, where TASK is JSON.

It loads the model with stock mlx-lm and writes what happens to stdout, one JSON object a line. It ends when its stdin
does, so that it does not outlive the process that guards it.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from hubtool.worker.events import (
    PROMPT_TOKENS,
    AnyTask,
    CalibrateTask,
    CompareTask,
    Device,
    Done,
    Event,
    Failed,
    Loaded,
    Peak,
    Task,
    Token,
)

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx.nn.layers.base import Module

PROMPT = "The capital of France is the city of"


class Reporter:
    """Tells the guarding process what happens; whatever else is printed goes to stderr."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def tell(self, event: Event) -> None:
        """Write an event."""
        self._out.write(msgspec.json.encode(event).decode() + "\n")
        self._out.flush()

    def explain(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        """As `sys.excepthook`: tell what the exception says, then show it."""
        self.tell(Failed(f"{kind.__name__}: {error}"))
        sys.__excepthook__(kind, error, traceback)


def main() -> None:
    """Do the task that the command line holds."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    reporter = Reporter()
    sys.excepthook = reporter.explain
    task = msgspec.json.decode(sys.argv[1], type=AnyTask)
    _tell_device(task, reporter)
    if isinstance(task, CompareTask):
        from hubtool.worker.quality import compare

        compare(task, reporter.tell)
    elif isinstance(task, CalibrateTask):
        from hubtool.worker.calibrate import calibrate

        calibrate(task, reporter.tell)
    elif task.what in _TASKS:
        _TASKS[task.what](task, reporter)
    if (nbytes := high_water_nbytes()) is not None:
        reporter.tell(Peak(nbytes))


def high_water_nbytes() -> int | None:
    """The most resident memory of this program, None where the system does not tell.

    It is Linux's VmHWM: ru_maxrss is handed on from whoever started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _tell_device(task: AnyTask, reporter: Reporter) -> None:
    from hubtool.convert.device import require_backend

    backend = require_backend()
    import mlx.core as mx

    if isinstance(task, CompareTask | CalibrateTask) or task.what in _TASKS:
        import mlx_lm  # noqa: F401  # its own failure must come before the device is reported

    recommended = mx.device_info().get("max_recommended_working_set_size")
    reporter.tell(Device(backend, int(recommended) if recommended and backend == "metal" else None))


def _open(task: Task, *, lazy: bool) -> tuple["Module", Any]:
    """Model and tokenizer as stock mlx-lm loads them: strictly, so that every parameter has its tensor."""
    import mlx_lm

    loaded = mlx_lm.load(task.folder, lazy=lazy, trust_remote_code=task.trust_remote_code)
    return loaded[0], loaded[1]


def _load(task: Task, reporter: Reporter) -> None:
    from mlx.utils import tree_flatten

    from hubtool.checkpoint.source import LocalSource

    model, _ = _open(task, lazy=True)
    parameters = set(dict(tree_flatten(model.parameters())))
    stored = set(LocalSource(Path(task.folder)).tensors)
    if parameters != stored:
        unmatched = ", ".join(sorted(parameters ^ stored)[:4])
        reporter.tell(Failed(f"{len(parameters ^ stored)} names of parameters and tensors differ: {unmatched}"))
        return
    reporter.tell(Loaded(parameters=len(parameters)))


def _smoke(task: Task, reporter: Reporter) -> None:
    model, tokenizer = _open(task, lazy=False)
    prompt = _prompt(tokenizer)
    reporter.tell(Loaded(parameters=0))
    first = [token for token, _ in _generate(model, prompt, 1, reporter)]
    tokens = [token for token, _ in _generate(model, prompt, task.tokens, reporter)]
    times: list[float] = []
    again: list[int] = []
    for token, when in _generate(model, prompt, task.tokens, reporter):
        again.append(token)
        times.append(when)
    if first != tokens[:1] or tokens != again:
        reporter.tell(Failed(f"greedy generation is not repeatable: tokens {tokens}, then {again}"))
        return
    reporter.tell(Done(tokens=tokens, seconds_per_token=_pace(times)))


def _smoke_streamed(task: Task, reporter: Reporter) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from hubtool.checkpoint.source import LocalSource
    from hubtool.worker.layerwise import Weights, sanitize_of, stream

    mx.set_cache_limit(0)  # what was read for one layer must not be kept for the next
    model, tokenizer = _open(task, lazy=True)
    prompt = _prompt(tokenizer)
    cache = make_prompt_cache(model)
    weights = Weights(LocalSource(Path(task.folder)), sanitize_of(model))
    stream(model, weights)
    reporter.tell(Loaded(parameters=0))
    tokens: list[int] = []
    times: list[float] = []
    read: list[int] = []
    for token in _generate_stepwise(model, prompt, task.tokens, reporter, cache):
        tokens.append(token)
        times.append(time.monotonic())
        read.append(weights.read_nbytes)
    reporter.tell(
        Done(
            tokens=tokens,
            seconds_per_token=_pace(times),
            read_nbytes=read[-1],
            read_per_token_nbytes=(read[-1] - read[0]) // (len(read) - 1) if len(read) > 1 else None,
        )
    )


def _prompt(tokenizer: Any) -> "mx.array":
    import mlx.core as mx

    return mx.array(tokenizer.encode(PROMPT)[:PROMPT_TOKENS])


def _generate(model: "Module", prompt: "mx.array", tokens: int, reporter: Reporter) -> Iterator[tuple[int, float]]:
    """Greedy tokens of mlx-lm and when they came; each step's probabilities are looked at."""
    from mlx_lm.generate import generate_step

    for number, (token, logprobs) in enumerate(generate_step(prompt, model, max_tokens=tokens), start=1):
        _tell_token(number, int(token), logprobs, reporter)
        yield int(token), time.monotonic()


def _generate_stepwise(
    model: Any, prompt: "mx.array", tokens: int, reporter: Reporter, cache: list[Any]
) -> Iterator[int]:
    """Greedy tokens by the steps that mlx-lm takes, but none after the last: one can take minutes from a disk."""
    import mlx.core as mx
    import numpy as np

    latest = prompt[-1:]
    if len(prompt) > 1:
        model(prompt[:-1][None], cache=cache)
        mx.eval([each.state for each in cache])
    for number in range(1, tokens + 1):
        logits = model(latest[None], cache=cache)[:, -1, :]
        logprobs = logits - mx.logsumexp(logits, keepdims=True)  # rounded as mlx-lm does: ties decide tokens
        latest = mx.argmax(logprobs, axis=-1)
        (token,) = np.array(latest).tolist()
        _tell_token(number, token, logprobs, reporter)
        yield token


def _tell_token(number: int, token: int, logprobs: "mx.array", reporter: Reporter) -> None:
    import mlx.core as mx

    if not mx.isfinite(logprobs).all().item():
        raise ArithmeticError(f"the probabilities of token {number} are not finite")
    reporter.tell(Token(number=number, token=token))


_TASKS = {"load": _load, "smoke": _smoke, "smoke-streamed": _smoke_streamed}


def _pace(times: list[float]) -> float | None:
    """Seconds from one token to the next, without the prompt; None for a single token."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


if __name__ == "__main__":
    main()
