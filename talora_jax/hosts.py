"""Many hosts: how processes come together, agree on what they do, and end together.

JAX's own coordination ends a process that waits for one which is gone by a C++ stack, minutes
later. So every process keeps, in the key-value store that process 0 holds for all, a pulse and, if
it ends by an error, a sentence. A thread of each process reads them, and ends it with that sentence
whatever it is waiting for.
"""

import contextlib
import ctypes
import itertools
import json
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from jax._src import distributed

from talora_jax import signals, slurm, storage
from talora_jax.errors import Stopped, UserError, one_line, outcome, short

AUTO = "auto"
_SPACE = "talora_jax"
_FAILED, _PULSE, _LEFT = (f"{_SPACE}/{name}/" for name in ("failed", "pulse", "left"))
# Where JAX's preemption service notes a SIGTERM that one of the processes got. Its public way to
# ask, `multihost_utils.reached_preemption_sync_point`, is of steps that all of them make.
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"
_EVERY = 1.0  # seconds between two pulses
_TO_READ_IT = 10.0  # seconds that process 0 stays for the others to read why all end
_SEEN = 5.0  # seconds that a network's disk may take to show what another host wrote
_PIECE = 2**20  # characters, for a message between processes has a limit
_NAMED = 3  # differences in a sentence
_SHOWN = 60  # characters of a value

_LEAST = {
    "num_processes": 1,
    "process_id": 0,
    "initialization_timeout": 1,
    "heartbeat_timeout": 5,
    "shutdown_timeout": 1,
}

_numbers = itertools.count()  # of what the processes do together, in the same order
_at_steps = threading.Event()


def check(hosts: ml_collections.ConfigDict) -> None:
    """Refuses a `config.hosts` by which no processes come together.

    Raises:
      UserError: names the field and what is expected.
    """
    for name, least in _LEAST.items():
        if hosts[name] < least:
            raise UserError(f"config.hosts.{name} is {hosts[name]}, expected at least {least}")
    address, count = hosts.coordinator, hosts.num_processes
    if not address and (count > 1 or hosts.process_id):
        name = "num_processes" if count > 1 else "process_id"
        raise UserError(
            f"config.hosts.{name} is {hosts[name]}, but config.hosts.coordinator is missing: give "
            "ADDRESS:PORT of process 0, as 10.0.0.1:8476"
        )
    if not address or address == AUTO:
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(
            f"config.hosts.coordinator is {short(address, _SHOWN)}, expected ADDRESS:PORT of "
            f"process 0, as 10.0.0.1:8476, or {AUTO}"
        )
    if not 0 <= hosts.process_id < count:
        raise UserError(
            f"config.hosts.process_id is {hosts.process_id}, expected 0 to {count - 1}, for "
            f"config.hosts.num_processes is {count}"
        )


def join(hosts: ml_collections.ConfigDict, *, preemptible: bool = False) -> None:
    """Joins this process to the others, unless it has or there are none.

    Args:
      preemptible: SIGTERM does not end this process, but JAX notes it for all of them.

    Raises:
      UserError: `config.hosts` cannot work, or there is no cluster that `auto` could ask. Where the
        others do not come in time, the process is ended with a sentence.
    """
    check(hosts)
    if not hosts.coordinator or jax.distributed.is_initialized():
        return
    explicit = {}
    if hosts.coordinator != AUTO:
        explicit = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.num_processes,
            "process_id": hosts.process_id,
        }
        _check_address(hosts)
    jax.config.update("jax_enable_preemption_service", preemptible)
    # JAX's own timeouts, at whose end is the stack, are behind ours.
    late = threading.Timer(hosts.initialization_timeout, _come_late, (hosts,))
    late.daemon = True
    late.start()
    try:
        # As SIGTERM ends a command, until all have come and JAX takes it.
        with signals.ending_at_once(signal.SIGINT):
            jax.distributed.initialize(
                **explicit,
                local_device_ids=slurm.local_device_ids(),
                initialization_timeout=2 * hosts.initialization_timeout + 60,
                heartbeat_timeout_seconds=2 * hosts.heartbeat_timeout + 60,
                shutdown_timeout_seconds=hosts.shutdown_timeout,
            )
    except (RuntimeError, ValueError, OSError) as error:
        if explicit:
            raise UserError(
                f"config.hosts.coordinator={hosts.coordinator}: {one_line(error)}"
            ) from error
        raise UserError(
            f"config.hosts.coordinator={AUTO} finds no cluster here ({one_line(error)}): it asks a "
            "TPU pod, SLURM or Open MPI (of what srun or mpirun has started). Elsewhere give "
            "ADDRESS:PORT of process 0, config.hosts.num_processes and config.hosts.process_id"
        ) from error
    finally:
        late.cancel()


@contextlib.contextmanager
def joined(hosts: ml_collections.ConfigDict) -> Iterator[None]:
    """Joins this process to the others; they end together, and if one fails, by its sentence.

    SIGTERM to one of them ends all, see `at_steps`.

    Raises:
      UserError: as of `join`.
    """
    join(hosts, preemptible=True)
    if not jax.distributed.is_initialized():
        yield
        return
    watch = _Watch(hosts.heartbeat_timeout)
    try:
        try:
            yield
        except Stopped:  # by all of them, after the same step
            watch.end(hosts.shutdown_timeout)
            raise
        watch.end(hosts.shutdown_timeout)
    except Stopped:
        raise
    except BaseException as error:
        watch.fail(error)


@contextlib.contextmanager
def at_steps() -> Iterator[None]:
    """While steps are made, SIGTERM to a process that is `joined` waits for one, see
    `talora_jax.training.workdir.Stop`; before and after, it ends all processes at once."""
    _at_steps.set()
    yield
    # Not where an exception ends the steps: what they were stopped at is still to be saved.
    _at_steps.clear()


def agree(facts: Mapping[str, Any]) -> None:
    """Refuses to go on where the processes differ in what they must have in common.

    All of them call this, and none goes on before all have.

    Args:
      facts: by the name that is told of it, for JSON.

    Raises:
      UserError: this process is not as process 0; names what differs.
    """
    if not jax.distributed.is_initialized():
        return
    name = f"{_SPACE}/agree/{next(_numbers)}"
    ours = json.loads(json.dumps(facts))
    if jax.process_index() == 0:
        _store().key_value_set(name, json.dumps(ours))
    else:
        theirs = json.loads(_read(name))
        differing = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
        if differing:
            named = ", ".join(
                f"{k} is {short(ours.get(k), _SHOWN)} here and {short(theirs.get(k), _SHOWN)} there"
                for k in differing[:_NAMED]
            )
            more = f", and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            raise UserError(
                f"process {jax.process_index()} is not as process 0: {named}{more}. Start all "
                f"{jax.process_count()} with the same command, version and data"
            )
    gathered(None)  # none goes on before all are here


def gathered(value: Any) -> list[Any]:
    """What every process gives, in their order; all of them call this.

    Args:
      value: for JSON.
    """
    if not jax.distributed.is_initialized():
        return [value]
    name, text = f"{_SPACE}/gathered/{next(_numbers)}", json.dumps(value)
    pieces = [text[i : i + _PIECE] for i in range(0, len(text), _PIECE)]
    for k, piece in enumerate(pieces):
        _store().key_value_set(f"{name}/{jax.process_index()}/{k}", piece)
    _store().key_value_set(f"{name}/{jax.process_index()}/pieces", str(len(pieces)))
    given = []
    for theirs in (f"{name}/{i}" for i in range(jax.process_count())):
        count = int(_read(f"{theirs}/pieces"))
        given.append(json.loads("".join(_read(f"{theirs}/{k}") for k in range(count))))
    return given


def check_shared(flag: str, folder: Path) -> None:
    """Refuses a folder that is not the same one for all processes: process 0 writes a token, where
    the folder is or will be, and all others look for it. All of them call this; nothing is left.

    Args:
      flag: how the folder was given, for the message.

    Raises:
      UserError: a process does not see the token, or process 0 cannot write it.
    """
    if not jax.distributed.is_initialized():
        return
    ours = jax.process_index() == 0
    missing = 0  # how many of the folders on the way are still to be made
    if not storage.is_remote(folder):
        folder = folder.absolute()
        while not [folder, *folder.parents][missing].is_dir():
            missing += 1
    token, missing = gathered((f".shared-{secrets.token_hex(8)}", missing))[0]
    to_make = gathered(folder.parts[len(folder.parts) - missing :])
    path = [folder, *folder.parents][: missing + 1][-1] / token
    if ours:
        try:
            with storage.reached(folder):
                path.write_bytes(b"")
        except OSError as error:
            raise UserError(f"{flag}: {path.parent}: {error.strerror or error}") from None
    try:
        gathered(None)  # by now it is written
        with storage.reached(folder):
            sees = _seen(path, 0 if ours else _SEEN)
        seen = gathered(sees)
        blind = [i for i in range(len(seen)) if not (seen[i] and to_make[i] == to_make[0])]
    finally:
        if ours:
            path.unlink(missing_ok=True)
    if blind:
        named = " and ".join(map(str, blind[:_NAMED]))
        raise UserError(
            f"{flag}: {folder} is not the same folder for all processes: what process 0 writes "
            f"there process {named} does not see. Give one on a disk that all hosts share, or in a "
            "bucket, gs://BUCKET/FOLDER"
        )


def _seen(path: Path, within: float) -> bool:
    """Whether there is such a file, or will be in so many seconds."""
    until = time.monotonic() + within
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _check_address(hosts: ml_collections.ConfigDict) -> None:
    """Refuses an address that has no meaning here, and a port that is taken."""
    host, _, port = hosts.coordinator.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise UserError(
            f"config.hosts.coordinator: {short(host, _SHOWN)} is no address that this host knows "
            f"({one_line(error)})"
        ) from None
    if hosts.process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"config.hosts.coordinator: process 0 cannot listen on port {port} "
                f"({error.strerror}): is another run at work here? Choose another port"
            ) from None


def _come_late(hosts: ml_collections.ConfigDict) -> NoReturn:
    """Ends a process that waits for the others in vain."""
    after = f"after {hosts.initialization_timeout} s (config.hosts.initialization_timeout)"
    told = f"{after} not all {hosts.num_processes} processes have come"
    if hosts.coordinator == AUTO:
        told = f"{after} not all processes of the cluster have come"
    elif hosts.process_id:
        host, _, port = hosts.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            told = (
                f"{after} nobody answers at config.hosts.coordinator={hosts.coordinator} "
                f"({error.strerror or error}): is it where process 0 runs, and is that started?"
            )
    _tell(f"error: {told}")
    os._exit(2)


class _Watch:
    """Ends this process, from a thread, when another has failed or is gone."""

    def __init__(self, timeout: float):
        """
        Args:
          timeout: seconds without a pulse after which a process counts as gone.
        """
        self._store, self._timeout = _store(), timeout
        self._index, self._count = jax.process_index(), jax.process_count()
        self._over = threading.Event()
        _at_steps.clear()
        self._leaving = threading.Lock()
        self._pulses: dict[str, tuple[str, float]] = {}
        ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self, timeout: float) -> None:
        """Waits for all processes to have come to the end.

        Raises:
          UserError: one has not, in so many seconds.
        """
        try:
            self._store.wait_at_barrier(f"{_SPACE}/end", int(timeout * 1000))
        except jax.errors.JaxRuntimeError:
            raise UserError(
                f"{timeout} s after process {self._index} was done others were not "
                "(config.hosts.shutdown_timeout)"
            ) from None
        self._over.set()
        self._thread.join()
        jax.distributed.shutdown()
        ctypes.CDLL(None).signal(signal.SIGABRT, None)  # the default

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process by an error, and with it the others."""
        if isinstance(error, jax.errors.JaxRuntimeError):
            # More often than not it is that another one is gone: the thread is about to hear it.
            time.sleep(self._timeout + 3 * _EVERY)
        with self._leaving:
            told, status = outcome(error)
            if told is None:
                traceback.print_exception(error)
                what = f"{type(error).__name__}: {one_line(error)}"
                self._leave(f"process {self._index} ended by {what}", 1)
            _tell(told)
            told, who = told.removeprefix("error: "), f"process {self._index}"
            self._leave(told if told.startswith(who) else f"{who}: {told}", status)

    def _run(self) -> None:
        unheard = 0
        for number in itertools.count():
            try:
                failed = self._exchange(number)
                unheard = 0
            except jax.errors.JaxRuntimeError:
                # Process 0 is out of reach; if it is gone, JAX is about to abort this one.
                unheard += 1
                gone = unheard * _EVERY > self._timeout
                failed = (_lost([0]), 1) if gone else None
            if failed:
                with self._leaving:
                    told, status = failed
                    _tell(f"error: {told}" if status < 128 else told)  # else it is a signal's
                    self._leave(told, status)
            if self._over.wait(_EVERY):
                return

    def _exchange(self, number: int) -> tuple[str, int] | None:
        """Gives a pulse; returns why all end and with which status, if one has failed."""
        self._store.key_value_set(f"{_PULSE}{self._index}", str(number), allow_overwrite=True)
        if failed := self._store.key_value_dir_get(_FAILED):
            return tuple(json.loads(failed[0][1]))
        if not _at_steps.is_set() and self._has_notice():
            return (
                "stopped; the same command on all processes goes on from the last checkpoint, or "
                "from the start",
                128 + signal.SIGTERM,
            )
        if self._index == 0 and (gone := self._gone()):
            return _lost(gone), 1
        return None

    def _has_notice(self) -> bool:
        try:
            return bool(self._store.key_value_try_get(_NOTICE))
        except jax.errors.JaxRuntimeError:  # there is none
            return False

    def _gone(self) -> list[int]:
        """The processes of which there was no pulse for long."""
        now = time.monotonic()
        pulses = {name.rpartition("/")[2]: n for name, n in self._store.key_value_dir_get(_PULSE)}
        for i in map(str, range(self._count)):
            number, _ = self._pulses.get(i, (None, now))
            if i not in self._pulses or number != pulses.get(i, ""):
                self._pulses[i] = (pulses.get(i, ""), now)
        return [int(i) for i, (_, at) in self._pulses.items() if now - at > self._timeout]

    def _leave(self, told: str, status: int) -> NoReturn:
        """Ends this process at once, process 0 when the others have read why."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            # What the first one told stays.
            self._store.key_value_set(f"{_FAILED}first", json.dumps([told, status]))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(f"{_LEFT}{self._index}", "", allow_overwrite=True)
            until = time.monotonic() + (_TO_READ_IT if self._index == 0 else 0)
            while time.monotonic() < until:
                if len(self._store.key_value_dir_get(_LEFT)) == self._count:
                    break
                time.sleep(0.1)
        # JAX would wait for all the others at the exit of the interpreter.
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _lost(processes: list[int]) -> str:
    named = " and ".join(map(str, processes[:_NAMED]))
    return (
        f"process {named} is gone: nothing was heard of it for long "
        "(config.hosts.heartbeat_timeout); the same command on all processes goes on from the last "
        "checkpoint"
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    """Has the last word when JAX aborts this process, from a thread of its own: process 0 is gone,
    or one came that it has already.

    A handler of Python's would wait for the main thread, which waits for process 0.
    """
    _tell(
        "error: process 0, which holds all processes together, is gone or out of reach, or another "
        "was started twice, alone or as one of another run at the same port; the same command on "
        "all of them goes on from the last checkpoint"
    )
    os._exit(1)


def _tell(line: str) -> None:
    """A line on stderr from any thread, whatever another one is printing."""
    os.write(2, f"{line}\n".encode())


def _read(name: str) -> str:
    """A value of the store, when it is there.

    Others may be preparing data for hours: if one is gone, its pulse tells. Python hears of Ctrl-C
    between two tries.
    """
    while True:
        try:
            return _store().blocking_key_value_get(name, int(_EVERY * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _store() -> Any:
    """JAX's key-value store and barriers; as yet it gives no public way to them."""
    return distributed.global_state.client
