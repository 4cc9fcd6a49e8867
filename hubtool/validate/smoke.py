"""The third and fourth rungs: the model generates, with all weights in memory, or with one layer's at a time."""

import sys
from collections.abc import Callable
from dataclasses import replace

from hubtool.guard.guard import Limits
from hubtool.guard.memory import capacity
from hubtool.units import format_size
from hubtool.validate.child import Ran, judge, run_task, tokens_digest
from hubtool.validate.finding import Finding
from hubtool.validate.needs import INTERPRETER_NBYTES, Needs
from hubtool.worker.events import Device, Done, Event, Task

OnEvent = Callable[[Event], None]


def refuse(task: Task, needs: Needs, limits: Limits) -> Finding | None:
    """Why a rung is not begun, or None if there is room for it."""
    needed, what = {
        "load": (INTERPRETER_NBYTES, format_size(INTERPRETER_NBYTES)),
        "smoke": (needs.resident_nbytes, needs.describe_resident()),
        "smoke-streamed": (needs.streamed_nbytes, format_size(needs.streamed_nbytes)),
    }[task.what]
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
    """As many tokens as asked for, with one layer's weights in memory at a time, and never more than the limit."""
    ran = run_task(task, limits, on_event)
    if (finding := judge(ran, task)) is not None:
        return finding
    passed = _passed(ran, "with one layer's weights in memory at a time")
    limit = ran.report.limits.memory_nbytes
    if ran.peak_nbytes <= limit:
        return passed
    detail = f"its memory reached {format_size(ran.peak_nbytes)} at times, over the limit of {format_size(limit)}"
    return replace(passed, outcome="failed", detail=detail)


def _passed(ran: Ran, how: str, repeated: str = "") -> Finding:
    done = ran.last(Done)
    assert done is not None
    detail = f"greedy generation {how}: all probabilities finite{repeated}"
    figures: dict[str, int | float | str] = {"tokens": len(done.tokens), "tokens_digest": tokens_digest(done.tokens)}
    pace = done.seconds_per_token
    if done.read_nbytes is not None:
        figures["read_nbytes"] = done.read_nbytes
        if done.read_per_token_nbytes is not None:
            figures["read_per_token_nbytes"] = done.read_per_token_nbytes
        if pace:
            figures["seconds_per_token"] = float(f"{pace:.4g}")
    elif pace:
        figures["tokens_per_second"] = float(f"{1 / pace:.4g}")
    return Finding("passed", detail, {**figures, **ran.figures()})


def compare_tokens(finding: Finding, other: str, digest: str | None) -> Finding:
    """A generation that passed, held against the tokens of one of the `other` kind on this machine, if there is one."""
    if digest is None:
        return replace(finding, detail=f"{finding.detail}; no {other} run on this machine to compare with")
    if finding.figures["tokens_digest"] == digest:
        return replace(finding, detail=f"{finding.detail}, and the same tokens as the {other} run")
    return replace(finding, outcome="failed", detail=f"the tokens are not those of the {other} run")
