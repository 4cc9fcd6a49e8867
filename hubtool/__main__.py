"""The command `hubtool`, and `python -m hubtool`: an interrupt ends it within two seconds, whatever it is doing.

Ctrl-C and SIGTERM raise KeyboardInterrupt in the main thread, which unwinds and says how to go on. That exception can
get lost: in a callback of a library, in an import that tries something else, in a destructor; and the main thread may
wait for what does not end. So a thread of its own reads, from the signals' wake-up descriptor, that one has come, and
ends the process if that has not happened by itself. State needs no farewell: a run can be killed at any instant.

Nothing but the standard library is imported before signals are taken.
"""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

GRACE_SECONDS = 1.2
"""How long the main thread has to unwind."""

INTERRUPTED = 130
"""Exit code of a process that was interrupted, as shells have it (128 + SIGINT)."""


def main() -> int:
    """The exit code of this process's command line; an interrupt ends the process itself."""
    come = threading.Event()
    _watch(come)
    try:
        from hubtool.cli import main as command_line

        code = command_line()
        for each in SIGNALS:  # all is done; Python would fall back to the system's ways while it ends
            signal.signal(each, signal.SIG_IGN)
    except KeyboardInterrupt:
        _say("Error: interrupted")
        code = INTERRUPTED
    if come.is_set() or code == INTERRUPTED:
        _end()
    return code


def _watch(come: threading.Event) -> None:
    """Take the signals, and start the thread that sees to it that the process ends."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_after, args=(reader, writer, come), daemon=True, name="hubtool-interrupt").start()
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as `nohup` and shells without job control ask for
            signal.signal(each, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_after(reader: socket.socket, writer: socket.socket, come: threading.Event) -> None:
    """End the process if it does not end by itself once a signal has come; `writer` is held open meanwhile."""
    while not set(reader.recv(64)) & set(SIGNALS):
        pass
    come.set()
    time.sleep(GRACE_SECONDS)
    _say("Error: interrupted; what is done is kept: run the same command again and it goes on")
    _end()


def _say(text: str) -> None:
    """A line on stderr, past any buffer and lock that the interrupted thread may hold."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:
        pass


def _end() -> None:
    """End this process and its children now, with the exit code of an interrupt."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, RuntimeError):  # closed, or written to by the thread that was interrupted
            pass
    if "psutil" in sys.modules:  # without which no child was started
        import psutil

        for child in psutil.Process().children(recursive=True):
            try:
                child.kill()
            except psutil.Error:
                pass
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
