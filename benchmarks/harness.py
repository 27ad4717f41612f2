"""Contenders take turns, each in a process of its own; a table and a JSON file tell what they took.

- A process of its own: peak memory is one contender's, and nobody's threads or allocator stay.
- Turns (A B C A B C …): a machine that slows down while others use it slows all contenders alike.
  Ratios are taken within a turn, and the median ratio over the turns is reported.
- The first call compiles, or warms caches up. It is reported apart and is in no median.

A contender is a function named "module:function". Called with its options, it builds what it needs
and returns a step, which ends when the work is done, and some facts about it.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import talora_jax

SIZES = ("tiny", "vit_b", "vit_l", "vit_h")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "torch", "transformers", "segment-anything")
# What changes how fast a contender is without being an argument of the benchmark.
ENVIRONMENT = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
INSTALL_PEERS = "pip install 'talora_jax[torch]' segment-anything transformers"


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


def measure(contenders: Sequence[Contender], repeats: int, progress: Console) -> list[Result]:
    """Sets the contenders up one after the other, then lets them take turns.

    A contender that fails leaves the others undisturbed: its result says why.
    """
    results = [Result(contender.name, contender.ours) for contender in contenders]
    workers: dict[int, Worker] = {}
    try:
        for i, contender in enumerate(contenders):
            result = results[i]
            progress.print(f"{contender.name}: setting up, then the first call", style="dim")
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
                progress.print(
                    f"turn {turn + 1} of {repeats}, {result.name}: {took['seconds']:.3f} s",
                    style="dim",
                )
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
                    }
                )
    return rows


def _ratio(a: int | None, b: int | None) -> float | None:
    return None if a is None or b is None else a / b


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory": memory,
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0],
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Of Python, this project and the packages that take part, where installed."""
    found = {"python": platform.python_version(), "talora_jax": talora_jax.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Cores that this process may use; every contender uses all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with what all benchmarks share; `doc` is the module's docstring."""
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.{Path(sys.argv[0]).stem}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="also write all that is measured to this file"
    )
    return parser


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    peers: Sequence[str] | None,
    default: Sequence[str] | None = None,
    size: str = "vit_b",
) -> None:
    """`--size`, `--image-size`, `--repeats` and `--peers`, of the benchmarks that run a model.

    Args:
      peers: who can be measured; None leaves `--peers` out.
      default: who is, unless the command line says otherwise; None means all.
      size: the default size.
    """
    parser.add_argument(
        "--size",
        choices=SIZES,
        default=size,
        help="which SAM; tiny checks in a minute that everything runs (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the padded square, a multiple of 16 (default: the size's own, 1024 or 256)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="turns, in each of which every contender makes one timed call (default: %(default)s)",
    )
    if peers:
        default = peers if default is None else default
        parser.add_argument(
            "--peers",
            nargs="*",
            choices=peers,
            default=list(default),
            help="whom to measure beside ours; --peers without a name: nobody (default: "
            f"{' '.join(default)})",
        )


def add_geometry_arguments(parser: argparse.ArgumentParser) -> None:
    """`--original` and `--variants`, of the benchmarks from an image to its maps."""
    parser.add_argument(
        "--original",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the image and its maps (default: 288 384 at 1024, in proportion at other sizes)",
    )
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=("native_aspect",),
        default=["native_aspect"],
        help="further rows of ours: native_aspect encodes the image without its padding; "
        "--variants without a name: none (default: native_aspect)",
    )


def joint_options(
    architecture: dict[str, Any], original: Sequence[int] | None = None
) -> dict[str, Any]:
    """The options of all contenders from an image to its maps; by default it has NYUv2's shape."""
    side = architecture["encoder"]["image_size"]
    nyuv2 = [288 * side // 1024, 384 * side // 1024]
    return {"architecture": architecture, "original": original or nyuv2}


def our_contenders(
    args: argparse.Namespace, target: str, options: dict[str, Any]
) -> list[Contender]:
    """Ours as it is by default, and the variants asked for."""
    return [Contender("ours", target, options, ours=True)] + [
        Contender(f"ours, {name}", target, options | {name: True}, ours=True)
        for name in args.variants
    ]


def joint_work(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """What `compare` is to say about them."""
    side = options["architecture"]["encoder"]["image_size"]
    return {
        "size": args.size,
        "image": [1, *options["original"], 3],
        "padded": [side, side],
        "tasks": 3,
        "channels": 17,
        "dtype": "float32",
    }


def check_peers(peers: Sequence[str]) -> None:
    """Ends the program with one line if a peer's package is not installed."""
    # The decoder of segment_anything serves both encoders.
    needed = {"torch", "segment_anything", *peers} if peers else ()
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        sys.exit(
            f"The peers need {', '.join(missing)}: {INSTALL_PEERS} (or measure without peers: "
            "--peers)"
        )


def describe(size: str, image_size: int | None) -> dict[str, Any]:
    """The architecture of a size, as the contenders take it.

    Ends the program with one line if the image size cannot be.
    """
    if image_size is not None and (image_size < 64 or image_size % 16):
        sys.exit(f"--image-size is {image_size}, expected a multiple of 16, at least 64")
    return ask("benchmarks.ours:describe", {"size": size, "image_size": image_size})


def compare(
    title: str,
    args: argparse.Namespace,
    contenders: Sequence[Contender],
    work: dict[str, Any],
    more: Callable[[list[Result]], dict[str, Any]] | None = None,
) -> int:
    """Measures, prints tables, writes the JSON; the exit code: 1 if a contender failed.

    Args:
      title: of the table.
      args: the command line, of which `repeats` and `json` are read.
      contenders: in the order of their turns.
      work: what every contender is given to do, for the head of the table and the JSON.
      more: called with the results once the table is printed: what else belongs in the JSON.
    """
    if args.repeats < 1:
        sys.exit(f"--repeats is {args.repeats}, expected at least 1")
    console = make_console()
    head = print_head(console, title, work)
    results = measure(contenders, args.repeats, Console(stderr=True))
    compared = ratios(results)
    console.print(_result_table(results))
    for result in results:
        if result.error:
            console.print(f"{result.name}: {result.error}", style="red")
    if compared:
        console.print(_ratio_table(compared))
    report = head | {
        "contenders": [dataclasses.asdict(r) | {"median_seconds": r.median} for r in results],
        "ratios": compared,
        **(more(results) if more else {}),
    }
    write_json(args, report, console)
    return int(any(r.error for r in results))


def make_console() -> Console:
    """Wide enough for the tables where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_head(console: Console, title: str, work: dict[str, Any]) -> dict[str, Any]:
    """Prints what is measured, on what and with what; the same as the beginning of a report."""
    head = {"benchmark": title, "work": work, "machine": machine(), "versions": versions()}
    where = head["machine"]
    console.print(title, style="bold")
    console.print(", ".join(f"{name} {_plain(value)}" for name, value in work.items()))
    console.print(
        f"{where['cpu']}, {where['cores']} cores, {where['memory'] / 2**30:.0f} GiB, "
        f"load {where['load_average']:.2f} before the start"
    )
    console.print(", ".join(f"{name} {version}" for name, version in head["versions"].items()))
    for name, value in where["environment"].items():
        console.print(f"{name}={value}")
    return head


def write_json(args: argparse.Namespace, report: dict[str, Any], console: Console) -> None:
    """Writes the report, with the command line, where `--json` says."""
    if args.json:
        arguments = {k: v for k, v in vars(args).items() if k != "json"}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report | {"arguments": arguments}, indent=2) + "\n")
        console.print(f"wrote {args.json}")


def gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"


def _result_table(results: Sequence[Result]) -> Table:
    table = Table(
        caption="GiB resident. base: imports and weights; peak: the process's whole life; steps: "
        "after the first call"
    )
    columns = ("", "median s", "min – max s", "first call s", "base", "peak", "steps")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for r in results:
        spread = f"{min(r.seconds):.3f} – {max(r.seconds):.3f}" if r.seconds else ""
        table.add_row(
            r.name,
            f"{r.median:.3f}" if r.seconds else "failed",
            spread,
            "" if r.first_seconds is None else f"{r.first_seconds:.2f}",
            *map(gigabytes, (r.rss_after_setup, r.peak_rss, r.steps_peak_rss)),
        )
    return table


def _ratio_table(compared: Sequence[dict[str, Any]]) -> Table:
    table = Table(caption="below 1: the first takes less. Medians of the turns' ratios (min – max)")
    for column in ("", "time", "", "peak memory", "steps' memory"):
        table.add_column(column, justify="right" if column else "left")
    for row in compared:
        steps = row["steps_peak_rss"]
        table.add_row(
            f"{row['ours']} ÷ {row['other']}",
            f"{row['time']:.2f}",
            f"({row['time_least']:.2f} – {row['time_most']:.2f})",
            f"{row['peak_rss']:.2f}",
            "" if steps is None else f"{steps:.2f}",
        )
    return table


def _plain(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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


def _serve(target: str, options: dict[str, Any]) -> None:
    """A worker's life: set up, then a step for every line that comes in."""
    # Answers have a channel of their own; what libraries print goes where warnings go.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields) -> None:
        channel.write(json.dumps(fields) + "\n")
        channel.flush()

    # If memory runs out, it is the contender that ends, and no bystander.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    start = time.perf_counter()
    module, function = target.split(":")
    step, facts = getattr(importlib.import_module(module), function)(**options)
    answer(facts=facts, setup_seconds=time.perf_counter() - start, rss=_rss())
    counts_anew = False
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds, peak = time.perf_counter() - start, peak_rss()
        answer(seconds=seconds, peak_rss=peak, steps_peak_rss=peak if counts_anew else None)
        counts_anew = counts_anew or _reset_peak_rss()


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
