"""The second rung: stock mlx-lm loads the folder, lazily and strictly, in a child process."""

from hubtool.guard.guard import Limits
from hubtool.units import format_count
from hubtool.validate.child import judge, run_task
from hubtool.validate.finding import Finding
from hubtool.worker.events import Loaded, Task


def check_load(task: Task, limits: Limits) -> Finding:
    """Whether every parameter of the model has its tensor, and every tensor its parameter, at its shape."""
    ran = run_task(task, limits)
    if (finding := judge(ran, task)) is not None:
        return finding
    loaded = ran.last(Loaded)
    assert loaded is not None
    detail = f"loaded by mlx-lm, lazily and strictly: all {format_count(loaded.parameters)} parameters matched"
    return Finding("passed", detail, {"parameters": loaded.parameters, **ran.figures()})
