"""All maps of one image, three tasks and 17 channels: ours and mSAM in PyTorch.

The work is NYUv2's: a 288×384 image goes to 768×1024, is padded to 1024×1024, encoded for each of
semantic segmentation (13 channels), depth (1) and normals (3), decoded, and its maps go back to
288×384. The peer is mSAM of the peers' own modules in the way of the MTSAM release: task by task,
with the dense update of every layer and the decoder once per channel; see
`benchmarks/pytorch_peers.py`. From the same weights it gives the same maps as ours.

    python -m benchmarks.joint_forward               ViT-B; 10 minutes on two cores
    python -m benchmarks.joint_forward --size tiny   a quick check that everything runs
    python -m benchmarks.joint_forward --peers --tasks 5 --variants last_quarter
                                                     adapters in the last quarter of the blocks
                                                     beside adapters in all, five tasks
"""

import sys

from benchmarks import arguments, report
from benchmarks.harness import Contender
from talora_jax.errors import run_command

PEERS = ("transformers", "segment_anything")


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    arguments.add_model_arguments(parser, peers=PEERS)
    arguments.add_geometry_arguments(parser)
    parser.add_argument(
        "--tasks",
        type=int,
        default=arguments.NUM_TASKS,
        metavar="T",
        help="so many tasks, of ours alone: NYUv2's three, then others (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.tasks < 1 or (args.peers and args.tasks != arguments.NUM_TASKS):
        sys.exit(
            f"--tasks is {args.tasks}, expected 1 or more without peers (--peers without a name), "
            f"{arguments.NUM_TASKS} with them"
        )
    arguments.check_peers(args.peers)
    architecture = arguments.describe(args.size, args.image_size)
    options = arguments.joint_options(architecture, args.original)
    contenders = arguments.our_contenders(
        args, "benchmarks.ours:joint_forward", options | {"tasks": args.tasks}
    )
    contenders += [
        Contender(
            f"mSAM on {peer}",
            "benchmarks.pytorch_peers:joint_forward",
            options | {"package": peer},
        )
        for peer in args.peers
    ]
    work = arguments.joint_work(args, options, args.tasks)
    return report.compare("joint forward pass", args, contenders, work)


if __name__ == "__main__":
    run_command(main)
