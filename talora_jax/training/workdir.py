"""The workdir of a run: whose it is, who is at work in it, and how a run in it ends early."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
from jax.experimental import multihost_utils

from talora_jax import config as config_lib
from talora_jax import config_checks, signals, storage
from talora_jax.errors import Stopped, UserError, short
from talora_jax.files import check_folder, sweep, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG = "config.json"
PICTURES = "pictures"
# What a run may go on with another value of: where it happens, and how that is computed which it
# computes. That data and base of another path are the same ones is told by their content, when the
# data is opened and by `check_same`.
_FREE = (
    "config.data.path",
    "config.eval_batch_size",
    "config.host_metrics",
    "config.mesh.",
    "config.model.attention",
    "config.model.remat",
    "config.model.weights",
)
_NAMED = 6  # fields in a sentence
_LONGEST = 60  # characters of a value


def claim_workdir(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    write: bool,
    more_steps: bool = False,
    results: Sequence[str] = (),
) -> None:
    """Writes config.json into a new workdir, or checks that an old one is this config's.

    Args:
      write: else nothing is changed.
      more_steps: whether the run that is there may get more steps. Its learning rate is then, from
        the step it stands at, that of a run which had as many from the start.
      results: files that a finished run leaves; with more steps it is finished no longer, and they
        get names that tell its steps.

    Raises:
      UserError: the workdir belongs to another config, naming the fields that differ, or is none.
    """
    path = workdir / CONFIG
    _check_place(workdir)
    if not path.exists():
        if has_checkpoints(workdir):
            raise UserError(
                f"{workdir} holds checkpoints, but {CONFIG}, which tells what of, is missing: put "
                "it back, or choose another --workdir"
            )
        if write:
            _write(path, config)
        return
    config, began = as_begun(config, workdir), config_lib.read(path)
    theirs, ours = config_checks.forget_unread(began, began).to_dict(), config_lib.plain(config)
    before, now = config_lib.flat_fields(theirs), config_lib.flat_fields(ours)
    free = (*_FREE, *config_lib.place(config))
    differing = sorted(k for k in now if before[k] != now[k] and not k.startswith(free))
    longer = differing == ["config.steps"] and theirs["steps"] < ours["steps"]
    if differing and not (longer and more_steps):
        raise UserError(_another(workdir, differing, before, now, longer))
    if write and theirs != ours:
        # First: a run that is finished must not seem to have had the steps that are to come.
        for name in results if longer else ():
            if (workdir / name).exists():
                stem, dot, suffix = name.rpartition(".")
                (workdir / name).replace(workdir / f"{stem}_{theirs['steps']}_steps{dot}{suffix}")
        _write(path, config)


def as_begun(config: ml_collections.ConfigDict, workdir: Path) -> ml_collections.ConfigDict:
    """The config, without what its data set does not read if the run in the workdir began with it.

    Raises:
      UserError: there is a config.json that cannot be read.
    """
    path = workdir / CONFIG
    return config_checks.forget_unread(config, config_lib.read(path)) if path.exists() else config


def has_checkpoints(workdir: Path) -> bool:
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def check_same(config: ml_collections.ConfigDict, workdir: Path, told: dict, run_is: dict) -> None:
    """Refuses to go on with another base or other classes than a checkpoint was trained with.

    Args:
      told: what the checkpoint says of its run; older ones say nothing.
      run_is: what is true of the run at hand, see `talora_jax.training.setup.told`.

    Raises:
      UserError: names what differs.
    """
    weights = config.model.weights
    if "base_fingerprint" in told:
        same = not weights or told["base_fingerprint"] == run_is["base_fingerprint"]
    else:
        same = config_lib.read(workdir / CONFIG).model.weights == weights
    if not same:
        raise UserError(
            f"config.model.weights={weights} is not the base that the run in {workdir} trains on: "
            "its parameters are others; give the path of that one, or choose another --workdir"
        )
    classes = told.get("class_names", run_is["class_names"])
    if classes != run_is["class_names"]:
        raise UserError(
            f"the run in {workdir} has the classes {short(classes, _LONGEST)}, but the data has "
            f"{short(run_is['class_names'], _LONGEST)}: give the same data, or choose another "
            "--workdir"
        )


@contextlib.contextmanager
def held(workdir: Path, *, active: bool = True) -> Iterator[None]:
    """Keeps other processes out of a directory, which is made; what killed ones left half written
    in it is removed.

    The lock is the kernel's (flock) on the directory itself: nothing is left in it, and it is free
    when the process has gone, however it went. Where there is no such lock, there is none; in a
    bucket it is `storage.leased`.

    Raises:
      UserError: another process holds it, or as of `on_disk`.
    """
    with on_disk(workdir):
        if active:
            _check_place(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
        with _locked(workdir, active) as alone:
            if alone:
                sweep(workdir)
                sweep(workdir / PICTURES)
            yield


@contextlib.contextmanager
def on_disk(workdir: Path) -> Iterator[None]:
    """Tells in a sentence what the disk refuses.

    Raises:
      UserError: it is full, read-only, or refuses otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"{error.filename or workdir}: {error.strerror}. What was saved before stays; mend "
            "that and give the same command again"
        ) from error


def check_free(workdir: Path) -> None:
    """Refuses a directory that another process `held`, without taking it.

    Raises:
      UserError: it is held.
    """
    if workdir.is_dir():
        with _locked(workdir, active=True, shared=True):
            pass


class Stop:
    """Whether the run is asked to stop: by Ctrl-C, or by a scheduler's SIGTERM.

    The first signal lets the step that runs be finished and saved; the next one ends at once. On
    many hosts JAX takes SIGTERM, to any of them, and says to all after which step they stop.
    """

    signal: int | None = None

    def __enter__(self) -> "Stop":
        self._before = {}
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                # What a shell started in the background ignores Ctrl-C.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether to stop after this step; asked after each, it is the same in all processes."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _note(self, number: int, frame) -> None:
        self.signal = number
        self.__exit__()
        # Not print: the signal may have come in the midst of one.
        os.write(2, b"\nstopping after this step, which is saved; again stops at once\n")


@contextlib.contextmanager
def interrupted(workdir: Path, *, alone: bool = True) -> Iterator[Callable[[], None]]:
    """Tells what Ctrl-C or SIGTERM leaves that could not wait for a step.

    Gives a function to call where it is time to end if there was one: Python drops the exception of
    a signal that comes while garbage is collected, which is done, and long, before the first step.

    Args:
      alone: of many processes JAX takes SIGTERM, see `talora_jax.hosts.at_steps`.

    Raises:
      Stopped: with that, in place of a bare KeyboardInterrupt.
    """
    asked = 0

    def note(number: int, frame) -> None:
        nonlocal asked
        asked = number
        if alone:
            signals.interrupt(number, frame)
        raise KeyboardInterrupt  # by which the others hear of it

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    def tell_dropped(unraisable) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)

    hook = sys.unraisablehook
    usual = {signal.SIGINT: (signal.default_int_handler, signals.interrupt)}
    if alone:
        usual[signal.SIGTERM] = (signal.SIG_DFL, signals.end)
    here = threading.current_thread() is threading.main_thread()
    noted = [number for number, do in usual.items() if here and signal.getsignal(number) in do]
    if noted:
        sys.unraisablehook = tell_dropped
    try:
        with signals.handled(dict.fromkeys(noted, note)):
            yield check
    except Stopped:
        raise
    except KeyboardInterrupt:
        leaves = "its last checkpoint" if has_checkpoints(workdir) else "its start"
        raise Stopped(
            f"stopped; the same command goes on from {leaves} in {workdir}",
            128 + (asked or signal.SIGINT),
        ) from None
    finally:
        if noted:
            sys.unraisablehook = hook


def _check_place(workdir: Path) -> None:
    """Refuses what is no directory and cannot become one, or cannot be written to."""
    if storage.is_remote(workdir):
        storage.check_writable(workdir)
        if workdir.is_file():  # beside a folder of the same name, to a bucket
            raise UserError(f"--workdir: {workdir} is a file, expected a directory")
        return
    check_folder("--workdir", workdir)


@contextlib.contextmanager
def _locked(directory: Path, active: bool, shared: bool = False) -> Iterator[bool]:
    """Whether others are kept out."""
    if active and storage.is_remote(directory):
        # Nothing is half written in a bucket, and nothing there to sweep.
        if shared:
            storage.check_leased(directory)
        with contextlib.nullcontext() if shared else storage.leased(directory):
            yield False
        return
    if not active or fcntl is None:
        yield False
        return
    locked = True
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory}: another process is at work in it; let that end, or choose another "
                "--workdir"
            ) from None
        except OSError:
            locked = False  # a file system without locks
        yield locked
    finally:
        os.close(descriptor)


def _write(path: Path, config: ml_collections.ConfigDict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir: {path.parent}: {error.strerror}") from None
    write_atomically(path, json.dumps(config.to_dict(), indent=2).encode())


def _another(workdir: Path, differing: Sequence[str], before: dict, now: dict, longer: bool) -> str:
    changes = [
        f"{k} was {short(before[k], _LONGEST)} and is now {short(now[k], _LONGEST)}"
        for k in differing
    ]
    named = ", ".join(changes[:_NAMED])
    if len(changes) > _NAMED:
        named += f", and {len(changes) - _NAMED} more fields"
    if longer:
        way = (
            f"give --config.steps={now['config.steps']} to train on, with the learning rate of a "
            "run that had as many steps from the start"
        )
    elif differing == ["config.steps"]:
        way = "give the same config to resume: a run gets longer, never shorter"
    else:
        way = "give the same config to resume"
    return f"{workdir} was written by another config: {named}. Choose another --workdir, or {way}."
