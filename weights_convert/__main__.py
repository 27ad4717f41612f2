"""python -m weights_convert sam_vit_b_01ec64.pth sam_vit_b.safetensors

Converts SAM's weights between PyTorch and this project. What INPUT is, and how large the model, is
read from the file itself; what to write is told by how OUTPUT ends:

  NAME.safetensors   a base, for --config.model.weights=NAME.safetensors and for load_sam
  NAME.pth           the names of the official segment_anything (or MTSAM) code
  NAME               a folder that transformers' SamModel.from_pretrained reads

INPUT can be an official .pth (SAM ViT-B, ViT-L, ViT-H, or trained by the official MTSAM code), what
a training loop saved around such weights, a model.safetensors or pytorch_model.bin from Hugging
Face (or the folder around it, shards and all), or a base.

  python -m weights_convert --download vit_b sam_vit_b.safetensors     fetch, then convert
  python -m weights_convert sam_vit_b.safetensors back.pth             and back again
  python -m weights_convert mtsam.pth mtsam.safetensors --tasks semantic,depth,normals
  python -m weights_convert sam_vit_b_01ec64.pth small.safetensors --image-size 512
  python -m weights_convert sam_vit_b.safetensors merged.pth \\
      --adapter run/adapter.safetensors --channel depth
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talora_jax import storage
from talora_jax.errors import ArgumentParser, UserError, listed, printable, run_command
from weights_convert.download import FILES, URL, download, sha256

if TYPE_CHECKING:
    from weights_convert.checkpoint import Checkpoint

_NAMES = {"official": "official names", "huggingface": "Hugging Face names", "base": "a base"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line says.

    Raises:
      UserError: it cannot be done; nothing is left half-written.
    """
    args = _parser().parse_intermixed_args(arguments)
    # Imported here, as below: --help and a wrong argument need not wait for JAX.
    from weights_convert.write import check_output

    source, output = args.input, args.output
    if args.download:
        # The only path beside --download is the output.
        if output is not None:
            raise UserError("--download takes the place of INPUT: give the OUTPUT alone")
        source, output = None, source
        if output is not None:
            check_output(output)
        source = download(args.download, output.parent if output else Path())
        print(f"{source}: as released, by the hash in its name")
        if output is None:
            return
    if source is None or output is None:
        raise UserError("INPUT and OUTPUT are both needed; see --help")
    check_output(output)
    if (args.adapter is None) != (args.channel is None):
        raise UserError("--adapter and --channel belong together: give both or neither")
    convert(source, output, args)


def convert(source: Path, output: Path, args: argparse.Namespace) -> None:
    """Reads, checks and writes a checkpoint, and reports what it was and what was done."""
    from weights_convert.architecture import Told
    from weights_convert.checkpoint import HEADS, check_finite, open_checkpoint
    from weights_convert.write import write

    tasks = args.tasks.split(",") if args.tasks else ()
    told = Told(args.window, args.global_blocks, args.encoder_heads)
    checkpoint = open_checkpoint(source, tasks, args.decoder_heads, told, args.key)
    check_finite(checkpoint)
    print(f"{printable(str(source))}: {_describe(checkpoint)}")
    origin = checkpoint.source or {
        "file": checkpoint.files[0].name,
        # Of several files, that of all one after the other.
        "sha256": sha256(*checkpoint.files),
        "names": checkpoint.kind,
        "huggingface_alias": checkpoint.huggingface_alias,
    }
    if args.adapter:
        from weights_convert.merge import merged

        checkpoint = merged(checkpoint, args.adapter, args.channel)
        origin = {**origin, "adapter": args.adapter.name, "channel": args.channel}
        print(f"merged {args.channel} of {args.adapter}")
    if args.image_size is not None:
        from weights_convert.resize import resized

        before = checkpoint.architecture.sam.encoder.image_size
        checkpoint = resized(checkpoint, args.image_size)
        origin = {**origin, "interpolated_from": before}
        print(
            f"interpolated absolute and global relative positions from {before} to "
            f"{args.image_size} pixels"
        )
    notes = list(checkpoint.notes)
    if checkpoint.native_aspect and output.suffix != ".safetensors":
        notes.append("it learnt from images without padding; what reads this pads them to squares")
    heads = checkpoint.architecture.sam.decoder.heads
    if heads != HEADS and output.suffix == ".pth":
        notes.append(
            f"its mask decoder has {heads} attention heads, not {HEADS}, and no tensor shows them: "
            f"load it into TwoWayTransformer(num_heads={heads}, …), and convert it back with "
            f"--decoder-heads={heads}"
        )
    for note in notes:
        print(f"  {note}")
    write(checkpoint, output, origin)
    # What was trained here is of no file that somebody else could check.
    digest = f", SHA-256 {origin['sha256']}" if "sha256" in origin else ""
    made_of = printable(f"{origin.get('file', 'an unnamed file')}{digest}")
    print(f"wrote {output} and read it back; the weights are from {made_of}")


def _describe(checkpoint: "Checkpoint") -> str:
    architecture = checkpoint.architecture
    encoder = architecture.sam.encoder
    parameters = sum(checkpoint.get(entry).size for entry in checkpoint.entries)
    words = [
        f"SAM from {_NAMES[checkpoint.kind]}, {encoder.image_size} pixels, {encoder.depth} blocks "
        f"of width {encoder.width}, {parameters / 1e6:.1f} million parameters"
    ]
    if architecture.tasks is not None:
        words.append(f"mask decoders for {listed(architecture.tasks)}")
    if architecture.ranks is not None:
        words.append(f"adapters of ranks {', '.join(map(str, architecture.ranks))}")
    return "; ".join(words)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(number) for number in text.split(",")}))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__, "python -m weights_convert")
    parser.add_argument(
        "input", type=storage.local, nargs="?", metavar="INPUT", help="what to read"
    )
    parser.add_argument(
        "output", type=storage.local, nargs="?", metavar="OUTPUT", help="what to write"
    )
    parser.add_argument(
        "--download",
        choices=FILES,
        help=f"fetch the official file from {URL} (beside OUTPUT, or here) instead of reading "
        "INPUT; an interrupted download goes on where it stopped",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="make the model for square inputs of another side than the checkpoint's (1024): "
        "positions are interpolated once, here",
    )
    parser.add_argument(
        "--tasks",
        metavar="NAME,NAME,…",
        help="names for the mask decoders of an MTSAM checkpoint, in their order (default: 0,1,…)",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="adapter.safetensors",
        help="what training left; INPUT is the base it was trained on. OUTPUT is then a plain SAM "
        "whose single mask, without any prompt, is the --channel's map",
    )
    parser.add_argument(
        "--channel",
        metavar="TASK[:N]",
        help="the output channel to merge, such as depth, normals:2",
    )
    parser.add_argument(
        "--decoder-heads",
        type=int,
        metavar="N",
        help="attention heads of the mask decoder, the one size that no tensor shows; "
        "every released SAM has 8, which is the default",
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="of a .pth with several sets of weights, the one to take, such as ema or model.ema",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="TOKENS",
        help="side of the encoder's windows, 0 for none: where position tables leave it open",
    )
    parser.add_argument(
        "--global-blocks",
        type=_numbers,
        metavar="N,N,…",
        help="the encoder's blocks without windows, counted from 0: as --window",
    )
    parser.add_argument(
        "--encoder-heads",
        type=int,
        metavar="N",
        help="attention heads of an encoder without position tables, which else tell them",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
