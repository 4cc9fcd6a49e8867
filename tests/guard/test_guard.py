import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hubtool.guard import cgroup
from hubtool.guard.group import Group
from hubtool.guard.guard import GuardReport, Limits, run_guarded
from hubtool.guard.memory import Meter, Pressure, capacity
from hubtool.units import MB

pytestmark = pytest.mark.slow

HOG = Path(__file__).with_name("hog.py")

LIMIT = 100 * MB

LIMITS = Limits(LIMIT, grace=0.2)

Hog = Callable[..., GuardReport]


@pytest.fixture
def hog(tmp_path: Path) -> Hog:
    """Runs a hog under a limit, and makes sure that it did something and that nothing of it is alive."""

    def run(*modes: str, limits: Limits = LIMITS) -> GuardReport:
        pids = tmp_path / "pids"
        report = run_guarded([sys.executable, str(HOG), str(pids), *modes], limits)
        assert pids.read_text().split()
        assert [pid for pid in pids.read_text().split() if psutil.pid_exists(int(pid))] == []
        assert psutil.Process().children(recursive=True) == []
        return report

    return run


def python(code: str, limits: Limits = LIMITS, **options: object) -> GuardReport:
    return run_guarded([sys.executable, "-c", code], limits, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_guard_stops_a_child_that_grows_past_its_limit(hog: Hog) -> None:
    report = hog()
    assert report.reason == "memory"
    assert report.returncode in (-signal.SIGTERM, -signal.SIGKILL)
    assert LIMIT < report.peak_nbytes < 1.5 * LIMIT
    assert report.explanation().endswith("over the limit of 100 MB")


def test_guard_counts_forks_together(hog: Hog) -> None:
    report = hog("fork")
    assert report.reason == "memory"
    assert LIMIT < report.peak_nbytes < 1.5 * LIMIT


@pytest.mark.slow
def test_guard_kills_a_child_that_ignores_term(hog: Hog) -> None:
    report = hog("ignore-term")
    assert (report.reason, report.killed, report.returncode) == ("memory", True, -signal.SIGKILL)


@pytest.mark.slow
def test_guard_finds_a_process_that_left_the_session_and_lost_its_parent(hog: Hog) -> None:
    report = hog("leave-session")
    assert report.reason == "memory"
    assert report.peak_nbytes > LIMIT


@pytest.mark.slow
def test_guard_sees_a_process_whose_main_thread_has_ended(hog: Hog) -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere a process without its main thread is seen as any other")
    report = hog("leave-main-thread")
    assert (report.reason, report.left) == ("memory", 0)
    assert LIMIT < report.peak_nbytes < 1.5 * LIMIT


@pytest.mark.slow
def test_guard_that_is_suspended_suspends_its_child(tmp_path: Path) -> None:
    code = (
        "import sys; from hubtool.guard.guard import *\n"
        "report = run_guarded([sys.executable, *sys.argv[1:]], Limits(10**9))"
    )
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", code, str(HOG), str(pids)]
    guard = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": _root()})
    try:
        _wait_until(lambda: pids.is_file() and pids.read_text().strip() != "")
        both = [psutil.Process(guard.pid), psutil.Process(int(pids.read_text()))]
        guard.send_signal(signal.SIGTSTP)
        _wait_until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in both))
        guard.send_signal(signal.SIGCONT)
        _wait_until(lambda: all(each.status() != psutil.STATUS_STOPPED for each in both))
    finally:
        guard.send_signal(signal.SIGCONT)
        guard.terminate()
        guard.wait()


def test_guard_keeps_a_child_within_its_control_group(tmp_path: Path) -> None:
    with _control_group(400 * MB) as enter:
        code = (
            "import sys; from hubtool.guard.guard import *\n"
            "report = run_guarded([sys.executable, *sys.argv[1:]], Limits(10**12))\n"
            "print(report.reason, report.limits.memory_nbytes, report.figures().get('unmeasured'))"
        )
        command = [*enter, sys.executable, "-c", code, str(HOG), str(tmp_path / "pids")]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": _root()}, capture_output=True, text=True)
    reason, limit, unmeasured = done.stdout.strip().split(" ", 2)
    assert (reason, unmeasured) == ("memory", "the control group's own memory pressure")
    assert 200 * MB < int(limit) < 360 * MB


def test_the_pressure_of_the_own_control_group_counts() -> None:
    group = cgroup.V2_ROOTS[1] / f"hubtool-{os.getpid()}"
    with _made(group):
        code = "from hubtool.guard import cgroup; print(cgroup.pressure_file())"
        enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", code]
        done = subprocess.run(enter, env=os.environ | {"PYTHONPATH": _root()}, capture_output=True, text=True)
    assert done.stdout.strip() == str(group / "memory.pressure")


def test_guard_finds_a_child_of_a_process_that_left_without_looking_at_every_process(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("children are listed in Linux's /proc")
    code = (
        "import subprocess, sys\n"
        "print(subprocess.Popen(['sleep', '9'], start_new_session=True).pid, flush=True); sys.stdin.read()"
    )
    group = Group()
    with tempfile.TemporaryFile() as errors, group.start([sys.executable, "-c", code], errors, None) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert {each.pid for each in group.alive()} == {child.pid, pid}
        group.kill()
        assert group.alive(sweep=True) == []


def test_guard_ends_what_a_child_leaves_behind(hog: Hog) -> None:
    report = hog("leave-behind")
    assert (report.reason, report.returncode, report.left) == (None, 0, 1)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(LIMIT, swap_growth_nbytes=-1), "swap"), (Limits(LIMIT, pressure=-1.0), "pressure")],
)
def test_guard_stops_a_child_for_the_sake_of_the_system(limits: Limits, reason: str) -> None:
    if reason == "pressure" and Pressure().sample() is None:
        pytest.skip("this system does not tell its memory pressure")
    report = python("import time; time.sleep(60)", limits)
    assert (report.reason, report.returncode) == (reason, -signal.SIGTERM)
    assert reason in report.explanation()


def test_guard_leaves_a_child_alone_that_stays_within_its_limits() -> None:
    lines: list[str] = []
    report = python("import sys; print('one'); print('two'); sys.exit('why')", on_line=lines.append)
    assert (report.returncode, report.reason, report.killed, report.left) == (1, None, False, 0)
    assert lines == ["one", "two"]
    assert report.errors == "why"
    assert report.explanation() == ""


def test_guard_says_what_it_counted_and_what_it_could_not_measure() -> None:
    report = python("import time; time.sleep(0.2)")
    figures = report.figures()
    assert figures["limit_nbytes"] == LIMIT
    assert 1 * MB < report.peak_nbytes < LIMIT
    assert figures["memory_measure"] in ("pss", "phys_footprint")
    pressure = Pressure()
    pressure.sample()
    assert figures.get("unmeasured", "") == "; ".join(pressure.unmeasured)


def test_nothing_is_alive_after_the_guard_itself_is_interrupted(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_guarded([sys.executable, str(HOG), str(tmp_path / "pids"), "fork"], Limits(LIMIT), on_line=interrupt)
    assert psutil.Process().children(recursive=True) == []


@pytest.mark.slow
def test_a_child_notices_that_its_guard_was_killed(tmp_path: Path) -> None:
    child = "import os,sys; print(os.getpid(), file=open(sys.argv[1], 'w', buffering=1)); sys.stdin.read()"
    code = (
        "import sys; from hubtool.guard.guard import *\n"
        f"run_guarded([sys.executable, '-c', {child!r}, sys.argv[1]], Limits(10**9))"
    )
    written = tmp_path / "pid"
    guard = subprocess.Popen([sys.executable, "-c", code, str(written)], env=os.environ | {"PYTHONPATH": _root()})
    _wait_until(lambda: written.is_file() and written.read_text().strip() != "")
    pid = int(written.read_text())
    guard.kill()
    guard.wait()
    _wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_guarding_takes_little_memory_and_loads_no_mlx(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from hubtool.validate import ladder; from hubtool.guard.guard import *\n"
        "report = run_guarded([sys.executable, *sys.argv[1:]], Limits(100_000_000))\n"
        # Linux hands ru_maxrss on from whoever started this process; VmHWM is of this program alone.
        "peak = (\n"
        "    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    if sys.platform == 'darwin'\n"
        "    else 1024 * int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
        ")\n"
        "print(report.reason, peak, 'mlx' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(HOG), str(tmp_path / "pids")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": _root()}, capture_output=True, text=True, check=True)
    reason, peak, mlx = done.stdout.split()
    assert (reason, mlx) == ("memory", "False")
    assert int(peak) < 300 * MB


def test_proportional_memory_counts_shared_pages_once() -> None:
    if sys.platform != "linux":
        pytest.skip("proportional sizes are Linux's")
    code = (
        "import os, sys; held = bytearray(b'x' * 50_000_000); sys.stdout.write('x\\n'); sys.stdout.flush()\n"
        "os.fork(); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        process = psutil.Process(child.pid)
        _wait_until(lambda: bool(process.children()))
        pids = [child.pid, *(each.pid for each in process.children())]
        shared, resident = Meter(1.0), Meter(1.0)
        resident.measure = "rss"
        assert 50 * MB < shared.nbytes(pids) < 80 * MB
        assert resident.nbytes(pids) > 100 * MB


def test_a_process_that_has_ended_takes_no_memory() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert Meter(1.0).nbytes([child.pid]) == 0


def test_capacity_is_what_can_be_had_of_the_machine() -> None:
    found = capacity()
    assert 0 < found.available_nbytes <= found.total_nbytes <= psutil.virtual_memory().total


@contextlib.contextmanager
def _made(group: Path) -> Iterator[None]:
    """A control group for as long as it lasts; skips the test where none can be made."""
    if not group.parent.is_dir():
        pytest.skip("this system has no such control groups")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        yield
    finally:
        _wait_until(lambda: (group / "cgroup.procs").read_text() == "")
        group.rmdir()


@contextlib.contextmanager
def _control_group(limit: int) -> Iterator[list[str]]:
    """A command that runs another in a control group with this limit."""
    group = cgroup.V1_ROOT / f"hubtool-{os.getpid()}"
    with _made(group):
        (group / "memory.limit_in_bytes").write_text(str(limit))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]


def _root() -> str:
    return str(Path(__file__).parents[2])


def _wait_until(condition: Callable[[], bool]) -> None:
    """Returns when it holds; a minute without it is a failure, not a slow machine."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to hold")
