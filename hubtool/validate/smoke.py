"""The third and fourth rungs: the model generates, with all weights in memory, or with one layer's at a time."""

import sys
from collections.abc import Callable
from dataclasses import replace

from hubtool.units import format_size
from hubtool.validate.child import Ran, judge, run_task, tokens_digest
from hubtool.validate.events import Device, Done, Event, Task
from hubtool.validate.finding import Finding
from hubtool.validate.guard import Limits
from hubtool.validate.memory import capacity
from hubtool.validate.needs import Needs

OnEvent = Callable[[Event], None]


def refuse(task: Task, needs: Needs, limits: Limits) -> Finding | None:
    """Why a generation is not begun, or None if there is room for it."""
    needed = needs.streamed_nbytes if task.what == "smoke-streamed" else needs.resident_nbytes
    what = f"{format_size(needed)}" if task.what == "smoke-streamed" else needs.describe_resident()
    # A streamed run takes its memory a layer at a time and gives it back; Metal's recommendation is for what stays.
    metal = working_set() if task.what == "smoke" else None
    bounds = [
        (limits.memory_nbytes, "the memory limit"),
        (capacity().available_nbytes, "the memory that is available"),
        *([(metal, "the working set that Metal recommends")] if metal else []),
    ]
    have, name = min(bounds)
    if needed <= have:
        return None
    figures: dict[str, int | float | str] = {"needed_nbytes": needed, "limit_nbytes": limits.memory_nbytes}
    return Finding("refused_preflight", f"it needs about {what}, and {name} is {format_size(have)}", figures)


def working_set() -> int | None:
    """Bytes that Metal recommends to use at most, None elsewhere; asked of a child, because MLX must be loaded."""
    device = probe_device()[0] if sys.platform == "darwin" else None
    return device.working_set_nbytes if device else None


def probe_device() -> tuple[Device | None, str]:
    """What MLX runs on here, or None and why it does not load."""
    task = Task("device", "")
    ran = run_task(task, Limits(capacity().available_nbytes))
    finding = judge(ran, task)
    return ran.last(Device), finding.detail if finding else ""


def check_resident(task: Task, limits: Limits, on_event: OnEvent) -> Finding:
    """One token, then as many as asked for, twice: finite, the same each time, and how fast."""
    ran = run_task(task, limits, on_event)
    return judge(ran, task) or _passed(ran, "with all weights in memory", ", and the same tokens in a second run")


def check_streamed(task: Task, limits: Limits, on_event: OnEvent) -> Finding:
    """As many tokens as asked for, with one layer's weights in memory at a time."""
    ran = run_task(task, limits, on_event)
    return judge(ran, task) or _passed(ran, "with one layer's weights in memory at a time")


def _passed(ran: Ran, how: str, repeated: str = "") -> Finding:
    done = ran.last(Done)
    assert done is not None
    detail = f"greedy generation {how}: all probabilities finite{repeated}"
    figures: dict[str, int | float | str] = {"tokens": len(done.tokens), "tokens_digest": tokens_digest(done.tokens)}
    pace = done.seconds_per_token
    if done.read_nbytes is not None and done.read_nbytes_per_token is not None:
        figures |= {"read_nbytes": done.read_nbytes, "read_per_token_nbytes": done.read_nbytes_per_token}
        if pace:
            figures["seconds_per_token"] = float(f"{pace:.4g}")
    elif pace:
        figures["tokens_per_second"] = float(f"{1 / pace:.4g}")
    return Finding("passed", detail, {**figures, **ran.figures()})


def compare_tokens(streamed: Finding, resident_digest: str | None) -> Finding:
    """A streamed run that passed, held against the tokens of a resident run on the same machine, if there is one."""
    if resident_digest is None:
        return replace(streamed, detail=f"{streamed.detail}; no resident run on this machine to compare with")
    if streamed.figures["tokens_digest"] == resident_digest:
        return replace(streamed, detail=f"{streamed.detail}, and the same tokens as the resident run")
    return replace(streamed, outcome="failed", detail="the tokens are not those of the resident run")
