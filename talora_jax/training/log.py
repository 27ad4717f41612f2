"""What a run tells: lines on the terminal, `metrics.jsonl` and TensorBoard."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

from talora_jax.files import write_atomically


class RunLog:
    """The log of one run; only one process of many writes (`active`).

    On resume, what was logged after the restored step is dropped, so a killed and resumed run
    leaves the same log as an unbroken one.
    """

    def __init__(self, workdir: Path, *, resume_step: int, active: bool):
        self._console = rich.console.Console(quiet=not active, highlight=False)
        self._active = active
        if not active:
            return
        path = workdir / "metrics.jsonl"
        kept = [r for r in read_metrics(path) if r["step"] <= resume_step] if resume_step else []
        write_atomically(path, b"".join(json.dumps(r).encode() + b"\n" for r in kept))
        self._file = open(path, "a")
        # Imported here: with it comes PyTorch where that is installed, 0.2 GB and seconds.
        import tensorboardX

        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else 0
        )

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same scalars for TensorBoard."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture [H, W, 3] uint8 for TensorBoard."""
        if self._active:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def progress(self, total: int, start: int) -> "Progress":
        return Progress(self._console, total, start)

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._board.close()


class Progress:
    """Step time and time left: a bar on a terminal, and lines that stay."""

    def __init__(self, console: rich.console.Console, total: int, start: int):
        self._console, self._total, self._start = console, total, start
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
        self._console.print(
            f"step {step}/{self._total}  {self.step_time():.2f} s/step  left {left}  {numbers}",
            soft_wrap=True,
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
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
