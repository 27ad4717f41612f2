"""What the data pipeline delivers, and how long a train step waits for it.

Samples are prepared once, into a folder that is removed at the end; from then on they are read,
augmented as the default config says, and batched. Images per second are of a pipeline that starts
anew in every turn, so that nothing is ready before the clock runs. Then a model trains on the same
samples, and each step says how long it waited for its batch. On a machine that computes with the
cores that also read, the two are in each other's way, as they are in training there.

    python -m benchmarks.input                 rooms: reading, then training
    python -m benchmarks.input --steps 0       reading alone
    python -m benchmarks.input --dataset nyuv2_mtan --path nyuv2
"""

import tempfile

from benchmarks import arguments, report
from benchmarks.harness import Contender, Result, ask
from talora_jax.errors import run_command


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    parser.add_argument(
        "--dataset",
        choices=("rooms", "nyuv2_mtan"),
        default="rooms",
        help="what to read (default: %(default)s)",
    )
    parser.add_argument("--path", help="nyuv2_mtan: the download, a folder or a zip archive")
    parser.add_argument(
        "--original",
        type=int,
        nargs=2,
        default=(192, 256),
        metavar=("HEIGHT", "WIDTH"),
        help="rooms: size of the frames in pixels (default: 192 256)",
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=16,
        metavar="N",
        help="rooms: how many are rendered before anything is timed (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        metavar="N",
        help="images in a batch (default: %(default)s)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=50,
        metavar="N",
        help="batches that are read in each turn (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="numbers of threads that make batches, a row for each; 0: none but the caller "
        "(default: 0 1 2)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        metavar="N",
        help="training steps whose waiting is measured; 0: no training (default: %(default)s)",
    )
    arguments.add_model_arguments(parser, peers=None, size="tiny")
    args = parser.parse_args(argv)
    if (args.path is None) == (args.dataset == "nyuv2_mtan"):
        parser.error("--path and --dataset=nyuv2_mtan go together")

    with tempfile.TemporaryDirectory() as folder:
        data = {"name": args.dataset, "dir": folder}
        if args.dataset == "rooms":
            data |= {
                "image_size": list(args.original),
                "train_frames": args.frames,
                "val_frames": 1,
            }
        else:
            data |= {"path": args.path, "image_size": []}
        return _measure(args, data, ask("benchmarks.our_data:prepare_data", data))


def _measure(args, data: dict, prepared: dict) -> int:
    options = {
        "data": data,
        "batch_size": args.batch_size,
        "batches": args.batches,
    }
    contenders = [
        Contender(f"threads: {n}", "benchmarks.our_data:pipeline", options | {"threads": n})
        for n in args.threads
    ]
    work = {
        "samples": prepared["samples"],
        "image": [*prepared["image_size"], 3],
        "batch size": args.batch_size,
        "images per turn": args.batch_size * args.batches,
    }
    console = report.make_console()
    console.print(
        f"preparing {prepared['samples']} samples: {prepared['seconds']:.0f} s, at most "
        f"{prepared['peak_rss'] / 1e9:.2f} GB"
    )

    def rates_and_waiting(results: list[Result]) -> dict:
        rates = {r.name: r.facts["images"] / r.median for r in results if r.seconds}
        for name, rate in rates.items():
            console.print(f"{name}, {rate:.1f} images/s")
        if not args.steps:
            return {"prepared": prepared, "images_per_second": rates}
        training = _training(args, data)
        console.print(_sentence(args, training))
        return {"prepared": prepared, "images_per_second": rates, "training": training}

    return report.compare("input pipeline", args, contenders, work, rates_and_waiting)


def _training(args, data: dict) -> dict:
    architecture = arguments.describe(args.size, args.image_size)
    options = {
        "architecture": architecture,
        "data": data,
        "batch_size": args.batch_size,
        "steps": args.steps,
        "threads": max(args.threads),
    }
    took = ask("benchmarks.our_data:input_wait", options)
    return took | {"share_waiting": sum(took["waiting"]) / sum(took["total"])}


def _sentence(args, took: dict) -> str:
    steps = len(took["total"])
    return (
        f"training {args.size} with {max(args.threads)} threads: "
        f"{sum(took['total']) / steps:.3f} s a step (mean of {steps}), of which "
        f"{1000 * sum(took['waiting']) / steps:.1f} ms ({took['share_waiting']:.1%}) wait for input"
    )


if __name__ == "__main__":
    run_command(main)
