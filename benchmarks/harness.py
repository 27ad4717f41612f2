"""Contenders take turns, each in a process of its own, and tell what they took.

- A process of its own: peak memory is one contender's, and nobody's threads or allocator stay.
- Turns (A B C A B C …): a machine that slows down while others use it slows all contenders alike.
  Ratios are taken within a turn, and the median ratio over the turns is reported.
- The first call compiles, or warms caches up. It is reported apart and is in no median.

A contender is a function named "module:function". Called with its options, it builds what it needs
and returns a step, which ends when the work is done, and some facts about it. On a device that
counts its memory the step gives the most bytes that were in use there so far.

A contender's process runs this file, whose imports count as the contender's memory: so they are the
standard library's alone.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class ContenderFailed(Exception):
    """A contender's process ended before its work did."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
      name: as in the table.
      target: "module:function", see the top of this file.
      options: the function's keyword arguments, JSON-able.
      ours: whether this is ours, to be divided by the peers.
    """

    name: str
    target: str
    options: dict[str, Any]
    ours: bool = False


@dataclasses.dataclass
class Result:
    """What one contender took. Seconds; bytes.

    Attributes:
      facts: what the contender says about itself.
      setup_seconds: imports and weights.
      first_seconds: the first call, which compiles.
      seconds: of the timed calls, one per turn.
      rss_after_setup: resident memory with imports done and weights loaded.
      peak_rss: the most that was resident in the process's whole life, compiling included.
      steps_peak_rss: the most since the first call ended; None where the system does not tell.
      device_peak: the most in use on the device, or None.
      error: why there is no more than this.
    """

    name: str
    ours: bool
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    setup_seconds: float | None = None
    first_seconds: float | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    rss_after_setup: int | None = None
    peak_rss: int | None = None
    steps_peak_rss: int | None = None
    device_peak: int | None = None
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


class Worker:
    """A contender in its process."""

    def __init__(self, target: str, options: dict[str, Any]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness", target, json.dumps(options)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read()

    def step(self) -> dict[str, float]:
        """One call: its seconds, and the peak memory so far.

        Raises:
          ContenderFailed: the process has ended.
        """
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # Reading tells why.
        return self._read()

    def close(self) -> None:
        """Lets the process end, and waits for it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        if code == -signal.SIGKILL:
            raise ContenderFailed("killed, most likely for want of memory")
        raise ContenderFailed(f"ended with exit code {code}, for the reason printed above")


def ask(target: str, options: dict[str, Any]) -> dict[str, Any]:
    """The facts of a target that has no step, found out in another process.

    The parent imports neither JAX nor PyTorch: a child's peak memory begins at its parent's.
    Ends the program with one line if the other process fails.
    """
    try:
        worker = Worker(target, options)
    except ContenderFailed as failure:
        sys.exit(f"{target} {failure}")
    worker.close()
    return worker.ready["facts"]


def measure_apart(
    contenders: Sequence[Contender], repeats: int, tell: Callable[[str], None]
) -> list[Result]:
    """`measure` of one contender after the other: a device's memory is that of one of them."""
    return [measure([contender], repeats, tell)[0] for contender in contenders]


def measure(
    contenders: Sequence[Contender], repeats: int, tell: Callable[[str], None]
) -> list[Result]:
    """Sets the contenders up one after the other, then lets them take turns.

    A contender that fails leaves the others undisturbed: its result says why. `tell` is called with
    a line on what is done, as it goes on.
    """
    results = [Result(contender.name, contender.ours) for contender in contenders]
    workers: dict[int, Worker] = {}
    try:
        for i, contender in enumerate(contenders):
            result = results[i]
            tell(f"{contender.name}: setting up, then the first call")
            try:
                workers[i] = Worker(contender.target, contender.options)
                ready = workers[i].ready
                result.facts = ready["facts"]
                result.setup_seconds = ready["setup_seconds"]
                result.rss_after_setup = ready["rss"]
                first = workers[i].step()
                result.first_seconds, result.peak_rss = first["seconds"], first["peak_rss"]
            except ContenderFailed as failure:
                result.error = str(failure)
        for turn in range(repeats):
            for i, worker in workers.items():
                result = results[i]
                if result.error:
                    continue
                try:
                    took = worker.step()
                except ContenderFailed as failure:
                    result.error = str(failure)
                    continue
                result.seconds.append(took["seconds"])
                result.peak_rss = max(result.peak_rss, took["peak_rss"])
                result.steps_peak_rss = took["steps_peak_rss"]
                result.device_peak = took["device_peak"]
                tell(f"turn {turn + 1} of {repeats}, {result.name}: {took['seconds']:.3f} s")
    finally:
        for worker in workers.values():
            worker.close()
    return results


def ratios(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Ours ÷ every other row, time (the median over turns) and peak memory; below 1 ours is less.

    A variant of ours is divided by the peers and by what stands above it of ours.
    """
    rows = []
    for i, ours in enumerate(results):
        others = [r for r in results if not r.ours] + [r for r in results[:i] if r.ours]
        if not ours.ours or not ours.seconds:
            continue
        for other in others:
            if other.seconds:
                pairs = list(zip(ours.seconds, other.seconds, strict=False))
                time_ratios = sorted(a / b for a, b in pairs)
                rows.append(
                    {
                        "ours": ours.name,
                        "other": other.name,
                        "time": statistics.median(time_ratios),
                        "time_least": time_ratios[0],
                        "time_most": time_ratios[-1],
                        "peak_rss": ours.peak_rss / other.peak_rss,
                        "steps_peak_rss": _ratio(ours.steps_peak_rss, other.steps_peak_rss),
                        "device_peak": _ratio(ours.device_peak, other.device_peak),
                    }
                )
    return rows


def _ratio(a: int | None, b: int | None) -> float | None:
    return None if a is None or b is None else a / b


def cores() -> int:
    """Cores that this process may use; every contender uses all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss() -> int:
    """The most memory that was resident in this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _reset_peak_rss() -> bool:
    """Lets the peak begin at what is resident now; False where the system cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _rss() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_rss()
    return pages * os.sysconf("SC_PAGE_SIZE")


class Served:
    """A contender in this process: set up, then a step whenever it is asked for.

    Attributes:
      ready: its facts, the seconds that setting it up took, and the memory resident then.
    """

    def __init__(self, target: str, options: dict[str, Any]):
        start = time.perf_counter()
        module, function = target.split(":")
        self._step, facts = getattr(importlib.import_module(module), function)(**options)
        seconds = time.perf_counter() - start
        self.ready = {"facts": facts, "setup_seconds": seconds, "rss": _rss()}
        self._counts_anew = False

    def step(self) -> dict[str, float | None]:
        """One call: its seconds, and the peak memory so far: in all, since the first call, and on
        the device."""
        start = time.perf_counter()
        device_peak = self._step()
        seconds, peak = time.perf_counter() - start, peak_rss()
        if not self._counts_anew:
            peak = max(peak, self.ready["rss"])  # Linux counts its peak some pages late
        of_steps = peak if self._counts_anew else None
        self._counts_anew = self._counts_anew or _reset_peak_rss()
        return {
            "seconds": seconds,
            "peak_rss": peak,
            "steps_peak_rss": of_steps,
            "device_peak": device_peak,
        }


def _serve(target: str, options: dict[str, Any]) -> None:
    """A worker's life: set up, then a step for every line that comes in."""
    # Answers have a channel of their own; what libraries print goes where warnings go.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(fields: dict[str, Any]) -> None:
        channel.write(json.dumps(fields) + "\n")
        channel.flush()

    # If memory runs out, it is the contender that ends, and no bystander.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    served = Served(target, options)
    answer(served.ready)
    for _ in sys.stdin:
        answer(served.step())


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
