"""Signals that end a command at once, whatever its main thread waits for or imports.

Python calls a handler when the main thread is back from C++. That it got a signal it writes to a
descriptor at once, which a thread can wait for.
"""

import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

_ending = threading.Lock()
_temporary: set[Path] = set()
_interrupted: bool | None = None  # whether the command was; None where there is none


def end(number: int, frame: object = None) -> None:
    """A handler: tells that the process was stopped, and ends it with the status of shells.

    What is half written is removed, see `removing`.
    """
    # Of the main thread and the other one it is the first that tells.
    if _ending.acquire(blocking=False):
        os.write(2, b"stopped\n")
        try:
            for path in list(_temporary):
                _remove(path)
        finally:
            os._exit(128 + number)


@contextlib.contextmanager
def removing(path: Path) -> Iterator[None]:
    """Removes a file or a folder in the end, also where that is `end`; it need not be there."""
    _temporary.add(path)
    try:
        yield
    finally:
        _remove(path)
        _temporary.discard(path)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler, as Python's own of Ctrl-C: but an import, which makes of an exception what it
    likes, and in C crashes, it ends at once, and so a command that was interrupted before."""
    global _interrupted
    if _interrupted:
        end(number)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            end(number)
        frame = frame.f_back
    if _interrupted is not None:
        _interrupted = True
    raise KeyboardInterrupt


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """While a command lasts Ctrl-C is `interrupt`, where it was Python's own.

    After the first it remains so: Python cleans up, too, and would show where the next one came.
    """
    global _interrupted
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before, _interrupted = signal.signal(signal.SIGINT, interrupt), False
    try:
        yield
    finally:
        if not _interrupted:
            signal.signal(signal.SIGINT, before)
            _interrupted = None


@contextlib.contextmanager
def ending_at_once(number: int) -> Iterator[None]:
    """While this lasts a signal ends the process at once, unless it is ignored or `handled`.

    Out of the main thread nothing is changed.
    """
    before = signal.getsignal(number)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (signal.SIG_IGN, None):
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # as Python wants it
    others = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ours,), daemon=True).start()
    signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, before)
        signal.set_wakeup_fd(others)
        theirs.close()


@contextlib.contextmanager
def handled(handlers: Mapping[int, Callable]) -> Iterator[None]:
    """While this lasts signals are handled so, and by nobody else, from the main thread.

    Args:
      handlers: by the numbers of signals; if there are none, nothing is changed.
    """
    if not handlers:
        yield
        return
    # First: a thread might hear of a signal when its handler is gone.
    others = signal.set_wakeup_fd(-1)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(others)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _listen(told: socket.socket) -> None:
    with told:
        while numbers := told.recv(64):
            for number in numbers:
                if signal.getsignal(number) == end:
                    end(number)
