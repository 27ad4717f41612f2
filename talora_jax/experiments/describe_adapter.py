"""python -m talora_jax.adapter FILE

Prints what an adapter file holds: tasks, classes, sizes, and the base that it belongs to.
"""

from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table

from talora_jax import storage
from talora_jax.config import model_name
from talora_jax.errors import ArgumentParser, printable
from talora_jax.weights.adapter_file import AdapterFile, find


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "file",
        type=storage.place,
        metavar="FILE",
        help="adapter.safetensors, or the workdir of a run",
    )
    describe(find(parser.parse_args(arguments).file), rich.console.Console(markup=False))


def describe(path: Path, console: rich.console.Console) -> None:
    """Prints what an adapter file holds.

    Raises:
      UserError: as `AdapterFile.read`.
    """
    file = AdapterFile.read(path)
    size = storage.fetched(path).stat().st_size
    adapter = file.adapter
    ranks = "×".join(map(str, adapter["ranks"]))

    about = rich.table.Table(show_header=False, box=None)
    for name, text in (
        ("file", f"{path}, {size / 1e6:.2f} MB"),
        ("adapter", f"{adapter['kind']}, ranks {ranks}, scale {adapter['scale']}{_blocks(file)}"),
        ("model", _model(file)),
        ("base", file.base),
        ("fingerprint", file.base_fingerprint),
    ):
        about.add_row(name, printable(text))
    data = file.config.get("data")
    if "steps" in file.config and isinstance(data, dict) and "name" in data:
        trained = f"{file.config['steps']} steps on {data['name']}"
        about.add_row("trained", printable(trained))

    tasks = rich.table.Table("task", "channels", "classes")
    for task, channels in file.channels.items():
        classes = ", ".join(file.class_names.get(task, ()))
        tasks.add_row(printable(task), str(channels), printable(classes))

    parts: dict[str, int] = {}
    for name, x in file.tensors.items():
        parts[_part(name)] = parts.get(_part(name), 0) + x.size
    sizes = rich.table.Table("part", "parameters")
    sizes.columns[1].justify = "right"
    for part, size in parts.items():
        sizes.add_row(printable(part), f"{size:,}")
    sizes.add_row("all", f"{sum(parts.values()):,}")

    for table in (about, tasks, sizes):
        console.print(table)


def _model(file: AdapterFile) -> str:
    """Which model a file is for: its name, or its sizes where nobody named it."""
    model = file.config.get("model")
    if isinstance(model, dict) and {"size", "weights"} <= model.keys():
        return str(model_name(model))
    if file.sam is None:
        return "as its base"
    encoder = file.sam["encoder"]
    depth = encoder["stages"] * (encoder["window_blocks"] + 1)
    return f"{depth} blocks of width {encoder['width']}"


def _blocks(file: AdapterFile) -> str:
    """Which blocks have adapters, where not all have, as a config says it."""
    blocks = file.adapter.get("blocks")
    if not blocks:
        return ""
    return f", blocks {blocks[0]}" if len(blocks) == 1 else f", blocks {tuple(blocks)}"


def _part(name: str) -> str:
    """Which part of the model a tensor belongs to, in words."""
    if name.startswith("mask_decoders."):
        return "mask decoders"
    if ".adapter." in name:
        return f"adapters, {name.rpartition('.')[2]}"
    if name == "no_mask_embed":
        return "no-mask rows"
    return "LayerNorms" if ".norm1." in name or ".norm2." in name else "encoder"
