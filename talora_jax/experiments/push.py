"""Puts an adapter or a base on the Hugging Face Hub, with a card made from what it tells."""

import dataclasses
import tempfile
from pathlib import Path

from talora_jax import storage
from talora_jax.errors import UserError
from talora_jax.experiments import card
from talora_jax.experiments.finished_run import read_run
from talora_jax.rgb import read_rgb
from talora_jax.weights import adapter_file, base_file, hub
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import read_base_of
from talora_jax.weights.header import tensors_sha256

PICTURE = "picture"  # and how its file ends


def push(
    source: str | Path,
    name: str,
    *,
    base: str | None = None,
    picture: str | Path | None = None,
    license: str | None = None,
    private: bool = False,
) -> str:
    """Puts an adapter or a base into a repository, which is made if need be.

    The file, a card and a picture go there and nothing else. Who may write there is known to
    huggingface_hub, from `hf auth login` or HF_TOKEN.

    >>> import talora_jax
    >>> address = talora_jax.push("adapter.safetensors", "user/rooms")
    >>> model = talora_jax.load("user/rooms", base="sam_nano.safetensors")
    >>> [task.name for task in model.tasks]
    ['semantic', 'depth', 'normals']

    Args:
      source: an adapter, a base, or the workdir of a finished run, whose metrics and first picture
        the card then has.
      name: of the repository, user/name.
      base: of an adapter: where others find its base, such as the name of its repository. The
        adapter there tells it; None leaves what training wrote.
      picture: a PNG or JPEG for the card, in place of the run's.
      license: the Hub's word for it, such as apache-2.0.
      private: make a new repository one that only its owner sees.

    Returns:
      The address of the repository.

    Raises:
      UserError: there is no such file, the base is not the adapter's, the picture is none, or the
        Hub refuses.
    """
    hub.repository_of(name)
    path, workdir = _file_of(source)
    metrics = read_run(workdir).metrics if workdir and (workdir / "metrics.jsonl").is_file() else {}
    if picture is None and workdir:
        picture = next(iter(sorted((workdir / "pictures").glob("*.png"))), None)
    picture = picture and storage.local(picture)
    if picture:
        if not picture.is_file():
            raise UserError(f"there is no picture {picture}")
        read_rgb(picture)  # Nothing else goes to the Hub as one.
    picture_name = picture and f"{PICTURE}{picture.suffix.lower()}"
    about = {"picture": picture_name, "license": license}
    with tempfile.TemporaryDirectory() as folder:
        if base_file.is_base(path):
            if base is not None:
                raise UserError(f"{path} is a base and has none: base= is of adapters")
            tensors, description = base_file.read_base(path)
            text = card.of_base(description, name, tensors_sha256(tensors), metrics, **about)
            target = base_file.FILE_NAME
        else:
            file, target = AdapterFile.read(path), adapter_file.FILE_NAME
            if base is not None:
                read_base_of(file, path, base)
                file = dataclasses.replace(file, weights=base)
                path = Path(folder) / target
                file.write(path)
            text = card.of_adapter(file, name, metrics, **about)
        contents = {target: str(path), "README.md": text.encode()}
        if picture:
            contents[picture_name] = str(picture)
        return hub.upload(name, contents, private=private)


def _file_of(source: str | Path) -> tuple[Path, Path | None]:
    """The file to push, and the workdir that it lies in, if that is what was named."""
    place = storage.local(source)
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"there is no {source}: expected an adapter, a base, or a workdir")
        return place, None
    base = place / base_file.FILE_NAME
    return base if base.is_file() else adapter_file.find(place), place
