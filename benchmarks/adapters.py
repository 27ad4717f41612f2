"""What the adapters cost beyond the frozen encoder: operations, counted, and time, measured.

Operations (matrix products and convolutions, a multiply-add as two) are counted from shapes; see
`benchmarks/flops.py`. NYUv2's three tasks at 288×384 give two columns of per cent:

    adapters   the adapters alone, factored as they train, relative to the frozen encodings that
               they adapt
    joint      all from the image to the maps (adapters, decoders, resizing), beyond as many frozen
               encodings as there are tasks; negative where a kind encodes once for all tasks

Time is that of the encodings alone at `--size`, each kind beside as many frozen passes.

    python -m benchmarks.adapters                 counts, and times ViT-B
    python -m benchmarks.adapters --repeats 0     counts alone, half a minute
"""

from rich.table import Table

from benchmarks import arguments, report
from benchmarks.harness import Contender, ask
from talora_jax.errors import run_command

KINDS = ("talora", "lora_shared", "lora_per_task")
NUM_TASKS = 3
# What the Tucker adapters and their model are meant to stay below, in per cent.
LIMITS = {"adapters": 2.0, "joint": 8.0}


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    parser.add_argument(
        "--count",
        nargs="*",
        choices=arguments.SIZES,
        default=["vit_b", "vit_l", "vit_h"],
        help="sizes to count operations for; --count without a name: none (default: vit_b vit_l "
        "vit_h)",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        help="kinds of adapters to count and to time (default: all)",
    )
    arguments.add_model_arguments(parser, peers=None)
    args = parser.parse_args(argv)

    console = report.make_console()
    rows = [row for size in args.count for row in count(size, args.kinds)]
    if rows:
        console.print(f"operations for {NUM_TASKS} tasks, 17 channels", style="bold")
        console.print(_table(rows))
    if args.repeats == 0:
        counts = {"benchmark": "adapters", "versions": report.versions(), "flops": rows}
        report.write_json(args, counts, console)
        return 0

    architecture = arguments.describe(args.size, args.image_size)
    side = architecture["encoder"]["image_size"]
    contenders = [_encodings(kind, architecture, ours=True) for kind in args.kinds]
    contenders.append(_encodings("none", architecture, ours=False))
    work = {"size": args.size, "input": [1, side, side, 3], "tasks": NUM_TASKS, "dtype": "float32"}
    return report.compare(
        "encodings with adapters", args, contenders, work, lambda _: {"flops": rows}
    )


def count(size: str, kinds: list[str]) -> list[dict]:
    """One row per kind: operations, and in per cent what they are beyond frozen passes."""
    options = arguments.joint_options(arguments.describe(size, None)) | {"kinds": kinds}
    counted = ask("benchmarks.ours:adapter_flops", options)
    frozen = counted["frozen"]
    return [
        {
            "size": size,
            "kind": kind,
            "frozen_pass": frozen,
            **row,
            "adapters_percent": 100 * row["adapters"] / (row["passes"] * frozen),
            "joint_percent": 100 * (row["joint"] / (NUM_TASKS * frozen) - 1),
        }
        for kind, row in counted["kinds"].items()
    ]


def _encodings(kind: str, architecture: dict, *, ours: bool) -> Contender:
    name = kind if ours else f"{NUM_TASKS} frozen passes"
    options = {"architecture": architecture, "kind": kind, "num_tasks": NUM_TASKS}
    return Contender(name, "benchmarks.ours:embeddings", options, ours)


def _table(rows: list[dict]) -> Table:
    limits = ", ".join(f"{name} at most {limit:g} %" for name, limit in LIMITS.items())
    table = Table(caption=f"GFLOP; meant for talora: {limits}")
    columns = ("", "one frozen pass", "passes", "encodings", "joint", "adapters", "joint beyond")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(
            f"{row['size']} {row['kind']}",
            f"{row['frozen_pass'] / 1e9:,.1f}",
            str(row["passes"]),
            f"{row['encode'] / 1e9:,.1f}",
            f"{row['joint'] / 1e9:,.1f}",
            _percent(row, "adapters"),
            _percent(row, "joint"),
        )
    return table


def _percent(row: dict, name: str) -> str:
    value = row[f"{name}_percent"]
    above = row["kind"] == "talora" and value > LIMITS[name]
    return f"{value:.2f} %" + (" (above)" if above else "")


if __name__ == "__main__":
    run_command(main)
