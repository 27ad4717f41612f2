"""Reports: what the benchmarks print, and the JSON file that they write.

A report tells the machine, its load and the versions of all that took part beside the numbers.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import talora_jax
from benchmarks import harness
from benchmarks.harness import Contender, Result, cores, ratios

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "torch", "transformers", "segment-anything")
# What changes how fast a contender is without being an argument of the benchmark.
ENVIRONMENT = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def compare(
    title: str,
    args: argparse.Namespace,
    contenders: Sequence[Contender],
    work: dict[str, Any],
    more: Callable[[list[Result]], dict[str, Any]] | None = None,
    measure: Callable[..., list[Result]] = harness.measure,
) -> int:
    """Measures, prints tables, writes the JSON; the exit code: 1 if a contender failed.

    Args:
      title: of the table.
      args: the command line, of which `repeats` and `json` are read.
      contenders: in the order of their turns.
      work: what every contender is given to do, for the head of the table and the JSON.
      more: called with the results once the table is printed: what else belongs in the JSON.
      measure: `harness.measure`, or `harness.measure_apart`.
    """
    if args.repeats < 1:
        sys.exit(f"--repeats is {args.repeats}, expected at least 1")
    console = make_console()
    head = print_head(console, title, work)
    progress = functools.partial(Console(stderr=True).print, style="dim")
    results = measure(contenders, args.repeats, progress)
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
        text = json.dumps(report | {"arguments": arguments}, indent=2, default=str)  # of a path
        args.json.write_text(text + "\n")
        console.print(f"wrote {args.json}")


def gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"


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


def _result_table(results: Sequence[Result]) -> Table:
    on_device = any(r.device_peak is not None for r in results)
    table = Table(
        caption="GiB in use on the device"
        if on_device
        else "GiB resident. base: imports and weights; peak: the process's whole life; steps: "
        "after the first call"
    )
    memory = ("peak",) if on_device else ("base", "peak", "steps")
    for column in ("", "median s", "min – max s", "first call s", *memory):
        table.add_column(column, justify="right" if column else "left")
    for r in results:
        sizes = (r.rss_after_setup, r.peak_rss, r.steps_peak_rss)
        spread = f"{min(r.seconds):.3f} – {max(r.seconds):.3f}" if r.seconds else ""
        table.add_row(
            r.name,
            f"{r.median:.3f}" if r.seconds else "failed",
            spread,
            "" if r.first_seconds is None else f"{r.first_seconds:.2f}",
            *map(gigabytes, (r.device_peak,) if on_device else sizes),
        )
    return table


def _ratio_table(compared: Sequence[dict[str, Any]]) -> Table:
    table = Table(caption="below 1: the first takes less. Medians of the turns' ratios (min – max)")
    memory = {"peak_rss": "peak memory", "steps_peak_rss": "steps' memory"}
    if any(row["device_peak"] is not None for row in compared):
        memory = {"device_peak": "the device's memory"}
    for column in ("", "time", "", *memory.values()):
        table.add_column(column, justify="right" if column else "left")
    for row in compared:
        table.add_row(
            f"{row['ours']} ÷ {row['other']}",
            f"{row['time']:.2f}",
            f"({row['time_least']:.2f} – {row['time_most']:.2f})",
            *("" if row[name] is None else f"{row[name]:.2f}" for name in memory),
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
