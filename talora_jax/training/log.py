"""What a run tells: its `lines`, `metrics.jsonl`, TensorBoard and a tracker."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.console
import rich.progress

from talora_jax import storage
from talora_jax.files import write_atomically
from talora_jax.training.lines import Lines
from talora_jax.training.trackers import Tracker

_PUBLISH = 30  # seconds after which what is logged is written to a bucket

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary


class RunLog:
    """The log of one run; only one process of many writes (`active`).

    On resume, what was logged after the restored step is dropped, so a killed and resumed run
    leaves the same log as an unbroken one.

    Args:
      resume_step: the step that is restored; 0 begins a new log.
      last_step: of the run. Its evaluation comes behind its checkpoint, and is logged anew.
      tracker: is told what TensorBoard is told.
      lines: those of the run, if some were told before.

    Attributes:
      print: tells a line.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int,
        last_step: int,
        active: bool,
        tracker: Tracker | None = None,
        lines: Lines | None = None,
    ):
        self.print = lines or Lines(active=active)
        self._active = active
        self._kept: dict[tuple[int, str], dict] = {}
        if not active:
            return
        path = workdir / "metrics.jsonl"
        values, damaged = _read_lines(path) if resume_step else ([], 0)
        rows = [value for value in values if is_row(value)]
        damaged += len(values) - len(rows)
        # By step and split, for none stands twice.
        kept = {(row["step"], row["split"]): row for row in rows if row["step"] <= resume_step}
        if resume_step == last_step:
            kept.pop((last_step, "val"), None)
        if damaged:
            self.print(f"{path}: {damaged} damaged line(s) left out, the others kept")
        self._kept = kept
        self._folder = storage.Appending(workdir)
        self.print.keep(self._folder.here, workdir)
        path = self._folder.here / path.name
        write_atomically(path, b"".join(json.dumps(r).encode() + b"\n" for r in kept.values()))
        self._file = open(path, "a", encoding="utf-8")
        board = _Board(self._folder.here / "tensorboard", resume_step)
        self._boards: list[_Board | Tracker] = [board, *([tracker] if tracker else [])]
        self._published = time.monotonic()

    def logged(self, step: int, split: str) -> dict[str, float]:
        """The values that the log had at a step when the run was resumed; empty if it had none."""
        row = self._kept.get((step, split), {})
        return {name: value for name, value in row.items() if name not in ("step", "split")}

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same scalars for TensorBoard and the tracker."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for board in self._boards:
            board.scalars(step, {f"{split}/{name}": value for name, value in values.items()})
        if split != "train" or time.monotonic() > self._published + _PUBLISH:
            self.publish()

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture [H, W, 3] uint8 for TensorBoard and the tracker."""
        for board in self._boards if self._active else ():
            board.picture(step, name, picture)

    def publish(self) -> None:
        """Sees to it that what was logged outlives this process: called before a checkpoint is
        saved, for the run that goes on from it has no other log of what was before.

        Raises:
          UserError: the bucket that the workdir is in cannot be reached.
        """
        if self._active:
            self._folder.publish()
            self._published = time.monotonic()

    def progress(self, total: int, start: int) -> "Progress":
        return Progress(self.print.console, total, start, self.print)

    def close(self) -> None:
        if self._active:
            self._file.close()
            for board in self._boards:
                board.close()
            self._folder.close()


class _Board:
    """TensorBoard's event file, written at once.

    tensorboardX's own writer has a thread for it; on a full disk that dies, and the run would wait
    for it for ever.
    """

    def __init__(self, directory: Path, resume_step: int):
        with _without_pytorch():
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event, self._summary = Event, summary
        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        # What the killed run told of later steps is not shown.
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=resume_step + 1 if resume_step else 0, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(step, self._summary.scalar(name, value))
        self._writer.flush()

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._add(step, self._summary.image(name, picture, dataformats="HWC"))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, summary: "Summary") -> None:
        self._write(self._event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


@contextlib.contextmanager
def _without_pytorch() -> Iterator[None]:
    """As if PyTorch were not installed: tensorboardX would import it, which takes 0.2 GB and
    seconds, for tensors that it is not given here."""
    missing = "torch" not in sys.modules
    if missing:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if missing:
            del sys.modules["torch"]


class Progress:
    """Step time and time left: a bar on a terminal, and lines that stay."""

    def __init__(
        self,
        console: rich.console.Console,
        total: int,
        start: int,
        print_line: Callable[[str], None],
    ):
        self._total = total
        self._print = print_line
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("training"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=start, rate="")
        self._times: list[float] = []

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Call once when `step` steps are done."""
        self._times.append(time.monotonic())
        self._bar.update(self._task, completed=step, rate=f"{self.step_time():.2f} s/step")

    def line(self, step: int, values: Mapping[str, float]) -> None:
        left = time.strftime("%H:%M:%S", time.gmtime(self._pace() * (self._total - step)))
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._print(
            f"step {step}/{self._total}  {self.step_time():.2f} s/step  left {left}  {numbers}"
        )

    def step_time(self) -> float:
        """Median seconds a step, of the last hundred; the first step, which compiles, apart."""
        recent = self._times[-101:]
        return float(np.median(np.diff(recent))) if len(recent) > 1 else 0.0

    def _pace(self) -> float:
        """Mean seconds a step, of the last hundred: waiting for images and saving count, too."""
        recent = self._times[-101:]
        return (recent[-1] - recent[0]) / (len(recent) - 1) if len(recent) > 1 else 0.0


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; those that a kill or a disk has damaged are left out."""
    return _read_lines(path)[0]


def is_row(value: Any) -> bool:
    """Whether a line's value is what `RunLog.write` writes."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    numbers = (x for name, x in value.items() if name != "split")
    return isinstance(value.get("split"), str) and all(map(_is_number, numbers))


def _is_number(x: Any) -> bool:
    """Whether it is a float, or a whole number that can be one."""
    return type(x) is float or (type(x) is int and abs(x) <= sys.float_info.max)


def _read_lines(path: Path) -> tuple[list[Any], int]:
    """The values of all lines that are JSON, and how many others there are, but for a last half."""
    if not path.exists():
        return [], 0
    values, damaged, half = [], 0, False
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        # Where a machine went down, a file system may leave zeros.
        line = line.strip(b"\0 \t\r")
        if not line:
            continue
        damaged += half
        try:
            values.append(json.loads(line.decode()))
            half = False
        except (ValueError, RecursionError):
            half = True
    return values, damaged
