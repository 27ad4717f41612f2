"""How long a user waits: for a first prediction, for a run's first step, for a finished run.

Each is a command in a process of its own, from its start on, with programs compiled and data
prepared by the same command before; the first, which does that, is told apart.

    python -m benchmarks.startup                          sam_small and rooms_tiny
    python -m benchmarks.startup --frames 20 --repeats 1  a quick check that everything runs
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from benchmarks import arguments, report
from benchmarks.harness import ask
from talora_jax.errors import UserError, run_command

_PREDICTS = (
    "from talora_jax.compiled import keep_programs; keep_programs()\n"
    "import sys; from benchmarks.serving import first_prediction; first_prediction(sys.argv[1])"
)


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("--frames", type=int, metavar="N",
        help="rooms to train on, and a quarter to validate (default: as rooms_tiny)")  # fmt: skip
    add("--repeats", type=int, default=3, metavar="N",
        help="how often each is timed, after the first time (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    console = report.make_console()
    head = report.print_head(
        console, "start-up", {"frames": "all" if args.frames is None else args.frames}
    )
    with tempfile.TemporaryDirectory() as folder:
        adapter = f"{folder}/adapter.safetensors"
        ask("benchmarks.serving:make_adapter", {"path": adapter})
        frames = []
        if args.frames is not None:
            frames = [
                f"--config.data.train_frames={args.frames}",
                f"--config.data.val_frames={max(1, args.frames // 4)}",
            ]

        def training(name: str, steps: int) -> list[str]:
            run = ["-m", "talora_jax.main", "--config=rooms_tiny", f"--workdir={folder}/{name}"]
            return [*run, *frames, f"--config.steps={steps}", "--config.log_every=1"]

        numbers = iter(range(10**6))
        waits: dict[str, Callable[[], float]] = {
            "load and first prediction": lambda: _until(["-c", _PREDICTS, adapter]),
            "a run anew to its first step": lambda: _until(
                training(f"new_{next(numbers)}", 1000), "step 1/"
            ),
            "a run resumed to its next step": lambda: _until(training("resumed", 1000), "step "),
            "a finished run": lambda: _until(training("finished", 1)),
        }
        table = Table("", "first s", "median s", "min – max s")
        found = {}
        for name, wait in waits.items():
            first, *times = [wait() for _ in range(args.repeats + 1)]
            found[name] = {"first": first, "seconds": times}
            spread = f"{min(times):.1f} – {max(times):.1f}"
            table.add_row(name, f"{first:.1f}", f"{statistics.median(times):.1f}", spread)
    console.print(table)
    report.write_json(args, head | {"waits": found}, console)
    return 0


def _until(arguments_: list[str], line: str | None = None) -> float:
    """Seconds from the start of Python until it prints a line that begins so, or until its end.

    Raises:
      UserError: it ended before, or failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments_],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told = []
    for said in process.stdout:
        told.append(said)
        if line and said.startswith(line):
            seconds = time.perf_counter() - started
            # Not SIGINT, which a shell's background jobs ignore, and their children.
            process.terminate()
            process.communicate()
            return seconds
    seconds = time.perf_counter() - started
    if process.wait() or line:
        raise UserError(f"{' '.join(arguments_)}: {''.join(told[-3:])}")
    return seconds


if __name__ == "__main__":
    run_command(main)
