"""SAM's image encoder on one padded square: ours, transformers' and segment_anything's.

Weights are random and nothing is downloaded. All compute in float32 on all cores of this machine;
transformers uses its fused attention (SDPA). Ours has no adapters here.

    python -m benchmarks.encoder                  ViT-B at 1024×1024; 3 minutes on two cores
    python -m benchmarks.encoder --size tiny      a quick check that everything runs
"""

from benchmarks import arguments, report
from benchmarks.harness import Contender
from talora_jax.errors import run_command

PEERS = ("transformers", "segment_anything")


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    arguments.add_model_arguments(parser, peers=PEERS)
    args = parser.parse_args(argv)
    arguments.check_peers(args.peers)
    options = {"architecture": arguments.describe(args.size, args.image_size)}
    contenders = [Contender("ours", "benchmarks.ours:encoder", options, ours=True)]
    contenders += [
        Contender(peer, "benchmarks.pytorch_peers:encoder", options | {"package": peer})
        for peer in args.peers
    ]
    side = options["architecture"]["encoder"]["image_size"]
    work = {"size": args.size, "input": [1, side, side, 3], "dtype": "float32"}
    return report.compare("image encoder", args, contenders, work)


if __name__ == "__main__":
    run_command(main)
