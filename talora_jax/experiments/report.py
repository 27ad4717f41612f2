"""python -m talora_jax.report WORKDIR… [--out DIR] [--baseline WORKDIR…]

A table of the finished runs on each data set, beside what is published on it: printed, and written
as table.md, table.csv (every metric there is), runs.csv (a row for each run) and plot.png (quality
against trainable parameters). Runs on other files, splits or classes are in a table of their own.
What the rows and the relative improvements Δp and Δm are: talora_jax/experiments/tables.py.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import rich.box
import rich.console
import rich.table
from rich.markup import escape

from talora_jax import storage
from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.experiments.finished_run import FinishedRun, key, read_run
from talora_jax.experiments.tables import (
    DELTA_M,
    DELTA_P,
    MEASURED,
    PARAMETERS,
    STEP_TIME,
    SUMMARY,
    ResultTable,
    experiment,
    make_tables,
)
from talora_jax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_MARKERS = "osD^vP*X"
# Of the plot, in inches.
_TITLES, _PANEL, _AXIS, _LEGEND_LINE = 0.75, 2.2, 0.6, 0.2
_LEGEND_COLUMNS = 4


def report(
    workdirs: Sequence[Path], out: Path, baseline: Sequence[Path] = ()
) -> tuple[list[ResultTable], list[str]]:
    """Reads workdirs, prints the tables and writes table.md, table.csv, runs.csv and plot.png.

    Args:
      out: where these are written.
      baseline: workdirs of the single-task runs that Δ is relative to; none: those found.

    Returns:
      The tables, one per data set, and a sentence for each workdir that was left out.

    Raises:
      UserError: no workdir is usable, or a baseline is not.
    """
    singles = [read_run(path) for path in baseline]
    for run in singles:
        if len(run.tasks) > 1:
            raise UserError(
                f"--baseline {run.workdir} has {len(run.tasks)} tasks, expected a single-task run"
            )
    console = rich.console.Console(highlight=False)
    runs, left_out = _read_all(workdirs, singles)
    tables = make_tables(runs, singles)
    for table in tables:
        _print(table, console)
    for line in left_out:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    if not runs:
        raise UserError(f"none of the {len(workdirs)} workdirs holds a finished run")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "table.md", markdown(tables, left_out).encode())
    write_atomically(out / "table.csv", comma_separated(tables).encode())
    write_atomically(out / "runs.csv", each_run(tables).encode())
    picture = io.BytesIO()
    plot(tables).savefig(picture, format="png", dpi=150, bbox_inches="tight")
    write_atomically(out / "plot.png", picture.getvalue())
    written = "table.md, table.csv, runs.csv and plot.png"
    console.print(f"Wrote {written} in {out}", markup=False, soft_wrap=True)
    return tables, left_out


def _read_all(
    workdirs: Sequence[Path], singles: Sequence[FinishedRun]
) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs, `singles` first, and a sentence for each workdir without a new one."""
    runs, left_out = {}, []
    experiments: dict[str, list[FinishedRun]] = {}
    for path in [*(run.workdir for run in singles), *workdirs]:
        place = path.resolve()
        if place in runs:
            continue
        try:
            run = read_run(path)
        except UserError as error:
            left_out.append(str(error))
            continue
        alike = experiments.setdefault(key(experiment(run) | {"seed": run.config.seed}), [])
        twin = next((other for other in alike if run.data.same(other.data)), None)
        if twin:
            left_out.append(f"{path}: the same settings and seed as {twin.workdir}")
            continue
        alike.append(run)
        runs[place] = run
    return list(runs.values()), left_out


def markdown(tables: Sequence[ResultTable], left_out: Sequence[str] = ()) -> str:
    """The tables in Markdown, with what a reader needs to know under them."""
    lines = []
    for table in tables:
        columns = (*SUMMARY, *table.metrics)
        heads = ["method", "seeds", *columns, "source"]
        lines += [f"## {table.title}", "", _line(heads), _line(["---"] * len(heads))]
        for row in table.rows:
            seeds = "" if row.seeds is None else str(row.seeds)
            cells = [" ± ".join(_cell(name, row.values.get(name, ()))) for name in columns]
            lines.append(_line([row.method, seeds, *cells, row.source]))
        lines += ["", *(f"- {note}" for note in table.notes), *([""] if table.notes else [])]
    lines.append(
        "Mean ± standard deviation (n − 1) over seeds. Shares such as mIoU are fractions. A "
        "single-task row adds up parameters and step times of one run per task. Δp (LibMTL) and Δm "
        "(ASTMT) are relative to the single-task runs of the same model size; published ones are "
        "relative to their own table's."
    )
    if left_out:
        lines += ["", "Left out:", "", *(f"- {line}" for line in left_out)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def comma_separated(tables: Sequence[ResultTable]) -> str:
    """The tables as CSV: every metric that any row has, means and deviations at full precision."""
    rows = [(table, row) for table in tables for row in table.rows]
    own = (name for _, row in rows for name in row.values)
    columns = list(dict.fromkeys((*SUMMARY, *own)))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [head for name in columns for head in (name, f"{name} std")]
    writer.writerow(["data set", "method", "seeds", *heads, "source"])
    for table, row in rows:
        numbers: list[float | str] = []
        for name in columns:
            values = row.values.get(name, ())
            numbers.append(fmean(values) if values else "")
            numbers.append(stdev(values) if len(values) > 1 else "")
        seeds = "" if row.seeds is None else row.seeds
        writer.writerow([table.title, row.method, seeds, *numbers, row.source])
    return file.getvalue()


def each_run(tables: Sequence[ResultTable]) -> str:
    """The measured runs as CSV, each with every metric that any of them has."""
    runs = [(table, row, run) for table in tables for row in table.rows for run in row.runs]
    metrics = list(dict.fromkeys(name for _, _, run in runs for name in run.metrics))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = ["data set", "workdir", "method", "tasks", "seed", PARAMETERS, STEP_TIME]
    writer.writerow([*heads, *metrics])
    for table, row, run in runs:
        told = [table.title, run.workdir, row.method, " ".join(run.tasks), run.config.seed]
        numbers = [run.parameters, run.step_time, *map(run.metrics.get, metrics)]
        writer.writerow([*told, *("" if number is None else number for number in numbers)])
    return file.getvalue()


def _print(table: ResultTable, console: rich.console.Console) -> None:
    """The table in parts that fit a terminal: the summary, then the metrics of each task."""
    parts = [SUMMARY] + [
        tuple(name for name in table.metrics if name.startswith(f"{task}/")) for task in table.tasks
    ]
    for number, part in enumerate(parts):
        title = escape(table.title) if number == 0 else None
        grid = rich.table.Table(title=title, box=rich.box.SIMPLE, title_justify="left")
        grid.add_column("method", overflow="fold")
        for name in part:
            grid.add_column(name.replace("/", "/\n"), justify="right", no_wrap=True)
        for row in table.rows:
            cells = [_cell(name, row.values.get(name, ())) for name in part]
            if row.source == MEASURED or any(cell != ("–",) for cell in cells):
                mark = "" if row.source == MEASURED else "*"
                grid.add_row(escape(row.method) + mark, *("\n±".join(cell) for cell in cells))
        console.print(grid)
    for source in dict.fromkeys(row.source for row in table.rows if row.source != MEASURED):
        methods = ", ".join(row.method for row in table.rows if row.source == source)
        console.print(f"* {methods}: {source}", markup=False, soft_wrap=True)
    for note in table.notes:
        console.print(note, markup=False, soft_wrap=True)


def _cell(column: str, values: Sequence[float]) -> tuple[str, ...]:
    """The mean and, of several seeds, the standard deviation, rounded alike."""
    if not values:
        return ("–",)
    mean = fmean(values)
    if column == PARAMETERS:
        return (f"{mean:,.0f}",)
    if column in (DELTA_P, DELTA_M):
        # Adding 0 takes the sign off a rounded −0.
        text, decimals = f"{round(mean, 2) + 0.0:+.2f}", 2
    else:
        # Four significant digits of a number that is not 0, nan or inf.
        known = math.isfinite(mean) and mean != 0
        decimals = max(0, 3 - math.floor(math.log10(abs(mean)))) if known else 4
        text = f"{mean:.{decimals}f}"
    return (text, f"{stdev(values):.{decimals}f}") if len(values) > 1 else (text,)


def plot(tables: Sequence[ResultTable]) -> "Figure":
    """Quality against trainable parameters: relative improvements, then each task's metric of Δm,
    or the IoUs of each domain of prompts.

    Up is better in every panel. Filled, with bars of ± one standard deviation: measured. Hollow:
    published with its parameters. Dotted lines: published without.
    """
    # Imported here: the tables and their mistakes need not wait for it.
    from matplotlib.figure import Figure

    most = max(len(_panels(table)) for table in tables)
    margins = [
        _AXIS + _LEGEND_LINE * math.ceil(len(table.rows) / _LEGEND_COLUMNS) for table in tables
    ]
    heights = [_TITLES + _PANEL + margin for margin in margins]
    figure = Figure(figsize=(3.4 * most, sum(heights)))
    parts = figure.subfigures(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for table, part, margin, height in zip(tables, parts, margins, heights, strict=True):
        _plot_table(table, part)
        part.subplots_adjust(wspace=0.4, top=1 - _TITLES / height, bottom=margin / height)
    return figure


def _panels(table: ResultTable) -> dict[str, int]:
    """Column → 1 where higher is better, else -1."""
    deltas = {name: 1 for name in (DELTA_P, DELTA_M) if any(name in r.values for r in table.rows)}
    return deltas | dict(table.plotted)


def _plot_table(table: ResultTable, figure: "SubFigure") -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    panels = _panels(table)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    entries = {}
    for number, row in enumerate(table.rows):
        measured = row.source == MEASURED
        label = row.method if measured else f"{row.method} (published)"
        colour = f"C{number % 10}"
        for ax, name in zip(axes, panels, strict=True):
            values = row.values.get(name)
            if not values:
                continue
            if PARAMETERS in row.values:
                entries[label] = ax.errorbar(
                    fmean(row.values[PARAMETERS]),
                    fmean(values),
                    yerr=stdev(values) if len(values) > 1 else None,
                    # Ten colours, then the same with another marker.
                    fmt=_MARKERS[number // 10 % len(_MARKERS)],
                    color=colour,
                    markerfacecolor=colour if measured else "none",
                    capsize=3,
                )
            elif not measured:
                entries[label] = ax.axhline(fmean(values), color=colour, linestyle=":", linewidth=1)
    for ax, (name, sign) in zip(axes, panels.items(), strict=True):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(labelsize=8)
        ax.set_xlabel(PARAMETERS)
        ax.set_title(name if sign > 0 else f"{name}\n(lower is better)", fontsize=9)
        ax.grid(alpha=0.3)
        if sign < 0:
            ax.invert_yaxis()
    figure.suptitle(table.title)
    if entries:
        figure.legend(
            entries.values(), entries, loc="lower center", ncols=_LEGEND_COLUMNS, fontsize=8
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("workdirs", nargs="*", type=storage.local, metavar="WORKDIR", help="of finished runs")
    add("--out", type=storage.local, default=Path("report"), metavar="DIR",
        help="default: %(default)s")  # fmt: skip
    add("--baseline", nargs="+", type=storage.local, default=(), metavar="WORKDIR",
        help="the single-task runs that Δ is relative to; default: those of the same data set "
        "and model size among the WORKDIRs")  # fmt: skip
    args = parser.parse_args(arguments)
    report(args.workdirs, args.out, args.baseline)


if __name__ == "__main__":
    run_command(main)
