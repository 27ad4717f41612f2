"""On a GPU in bfloat16: encoder, joint forward pass and train step, by each kernel of attention.

First what each kernel gives of one global block's attention is held against float32. Then the
three jobs of `benchmarks.encoder`, `.joint_forward` and `.train_step`, ours by every word of
`config.model.attention` that can run there, beside PyTorch on segment_anything's and transformers'
encoders: their weights in bfloat16, in training automatic mixed precision. Each contender has the
GPU to itself, one after the other; memory is the most in use there.

    python -m benchmarks.gpu                             ViT-B at 1024×1024
    python -m benchmarks.gpu --size vit_l --jobs train_step --peers
    python -m benchmarks.gpu --platform cpu --size tiny  without a GPU, whether everything runs
"""

import argparse
import os
import sys
from typing import Any

from rich.table import Table

from benchmarks import arguments, harness, report
from benchmarks.harness import Contender, ask
from talora_jax.errors import run_command

JOBS = {
    "encoder": "image encoder",
    "joint_forward": "joint forward pass",
    "train_step": "train step",
}
PEERS = ("transformers", "segment_anything")
DTYPE = "bfloat16"


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    arguments.add_model_arguments(parser, peers=PEERS)
    parser.add_argument(
        "--jobs",
        nargs="+",
        choices=JOBS,
        default=list(JOBS),
        help=f"what to measure (default: {' '.join(JOBS)})",
    )
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("xla", "cudnn", "tokamax"),
        help="kernels of ours to measure (default: those that can run)",
    )
    parser.add_argument(
        "--platform",
        choices=("gpu", "cpu"),
        default="gpu",
        help="cpu only checks that everything runs (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    arguments.check_peers(args.peers)
    if args.platform == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # of the contenders' processes
    device = ask("benchmarks.ours:device", {})
    if args.platform == "gpu" and device["platform"] != "gpu":
        sys.exit(
            f"JAX finds no GPU, but {device['platform']}: pip install 'jax[cuda13]', or "
            "--platform cpu to check that everything runs"
        )
    words = args.attention or device["attention"]
    architecture = arguments.describe(args.size, args.image_size)
    work = {"device": device["kind"], "size": args.size, "dtype": DTYPE}
    differences = ask(
        "benchmarks.ours:attention_differences",
        {"architecture": architecture, "words": words, "dtype": DTYPE},
    )
    report.make_console().print(_differences(differences))
    failed = 0
    for job in args.jobs:
        contenders = _contenders(job, words, args, architecture)
        here = args.json and args.json.with_stem(f"{args.json.stem}_{job}")
        failed |= report.compare(
            JOBS[job],
            argparse.Namespace(**vars(args) | {"json": here}),
            contenders,
            work,
            lambda _: {"attention": differences},
            harness.measure_apart,
        )
    return failed


def _contenders(job: str, words: list[str], args: Any, architecture: dict) -> list[Contender]:
    function = "training" if job == "train_step" else job
    options: dict[str, Any] = {"architecture": architecture}
    if job != "encoder":
        options = arguments.joint_options(architecture)
    contenders = [
        Contender(
            f"ours, {word}",
            f"benchmarks.ours:{function}",
            options | {"dtype": DTYPE, "attention": word},
            ours=True,
        )
        for word in words
    ]
    theirs = {"device": "cuda" if args.platform == "gpu" else "cpu", "dtype": DTYPE}
    if job == "train_step":
        theirs["by_task"] = True
    return contenders + [
        Contender(
            peer, f"benchmarks.pytorch_peers:{function}", options | theirs | {"package": peer}
        )
        for peer in args.peers
    ]


def _differences(differences: dict[str, dict[str, float]]) -> Table:
    table = Table(caption="the largest difference from float32, of the largest number there")
    for column in ("attention", "output", "gradients"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for word, of in differences.items():
        table.add_row(word, f"{of['output']:.1e}", f"{of['gradients']:.1e}")
    return table


if __name__ == "__main__":
    run_command(main)
