"""One step of training, three tasks and 17 channels: ours and mSAM in PyTorch.

Forward pass, losses, orthogonal regulariser, backward pass and Adam on one image, with NYUv2's
geometry (see `benchmarks.joint_forward`) and the released recipe: adapters, no-mask rows, decoders
and the blocks' LayerNorms train. Ours is the project's own train step with the default config: it
goes backward after each task's forward pass, and on a CPU keeps a block's products with frozen
kernels (`config.model.remat=dots`), on accelerators only its input and what its attention gave
(`block_but_attention`).

The peers keep all activations, as PyTorch does by default. `…_by_task` goes backward after each
task's forward pass and so holds one task's activations, as ours; the others go backward once after
all tasks, which at ViT-B may need more than 24 GB and is therefore not measured unless asked for.

    python -m benchmarks.train_step               ViT-B
    python -m benchmarks.train_step --size tiny   a quick check that everything runs
    python -m benchmarks.train_step --peers --variants last_quarter kept_trunk
                                                  adapters in the last quarter of the blocks beside
                                                  adapters in all
"""

from benchmarks import arguments, report
from benchmarks.harness import Contender
from talora_jax.errors import run_command

PEERS = ("transformers_by_task", "segment_anything_by_task", "transformers", "segment_anything")
BY_TASK = "_by_task"


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    arguments.add_model_arguments(parser, peers=PEERS, default=PEERS[:2])
    kept = "has them there, too, and what the other blocks give is on disk (config.trunk_dir)"
    arguments.add_geometry_arguments(parser, {"kept_trunk": kept})
    args = parser.parse_args(argv)
    packages = {peer: peer.removesuffix(BY_TASK) for peer in args.peers}
    arguments.check_peers(list(packages.values()))
    architecture = arguments.describe(args.size, args.image_size)
    options = arguments.joint_options(architecture, args.original)
    contenders = arguments.our_contenders(args, "benchmarks.ours:training", options)
    contenders += [
        Contender(
            f"mSAM on {package}" + (", by task" if peer.endswith(BY_TASK) else ""),
            "benchmarks.pytorch_peers:training",
            options | {"package": package, "by_task": peer.endswith(BY_TASK)},
        )
        for peer, package in packages.items()
    ]
    work = arguments.joint_work(args, options)
    return report.compare("train step", args, contenders, work)


if __name__ == "__main__":
    run_command(main)
