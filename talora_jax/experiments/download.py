"""talora_jax download nyuv2|cityscapes DIR

Loads published data down from the Hugging Face Hub, as parquet files: NYUv2 of
tanganke/nyuv2, Cityscapes of tanganke/cityscapes. The same command again loads what is missing;
a line that breaks costs what had not come. Each file's SHA-256 must be what the Hub says.
"""

import hashlib
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talora_jax import storage
from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.weights.hub import asked


class Published(NamedTuple):
    """A data set on the Hub, and the config and the base of a run on it."""

    repository: str
    config: str
    weights: str


PUBLISHED = {
    "nyuv2": Published("tanganke/nyuv2", "nyuv2:vit_b", "sam_vit_b.safetensors"),
    "cityscapes": Published("tanganke/cityscapes", "cityscapes_vit_l", "sam_vit_l.safetensors"),
}


def download(name: str, directory: Path) -> list[Path]:
    """Loads the parquet files of a published data set into a directory; those there are kept.

    Args:
      name: of `PUBLISHED`.

    Returns:
      Their paths, by name.

    Raises:
      UserError: the Hub cannot be asked, the disk is full, or a file is not what the Hub says.
    """
    repository = PUBLISHED[name].repository
    found = asked(repository, lambda api: api.dataset_info(repository, files_metadata=True))
    files = sorted(
        (file for file in found.siblings if file.rfilename.endswith(".parquet")),
        key=lambda file: file.rfilename,
    )
    if not files:
        raise UserError(f"{repository} on the Hub holds no parquet files")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}") from None
    missing = sum(f.size or 0 for f in files if not (directory / f.rfilename).is_file())
    if missing > (free := shutil.disk_usage(directory).free):
        raise UserError(
            f"{directory} has {free / 1e9:.1f} GB free, and {missing / 1e9:.1f} GB are to come: "
            "free some, or choose another directory"
        )
    return [_fetched(repository, found.sha, file, directory) for file in files]


def _fetched(repository: str, revision: str, file: Any, directory: Path) -> Path:
    """One file's path, whole."""
    path = asked(
        repository,
        lambda api: api.hf_hub_download(
            repository, file.rfilename, repo_type="dataset", revision=revision, local_dir=directory
        ),
        file.rfilename,
    )
    # The library compares sizes; what went wrong inside shows here.
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if file.lfs and digest != file.lfs.sha256:
        Path(path).unlink()
        raise UserError(
            f"{path} was not what the Hub has (its SHA-256 is {digest[:8]}…, expected "
            f"{file.lfs.sha256[:8]}…) and is removed; the same command loads it again"
        )
    return Path(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("name", choices=PUBLISHED, metavar="|".join(PUBLISHED), help="the data set")
    parser.add_argument("directory", type=storage.local, metavar="DIR", help="where it goes")
    args = parser.parse_args(arguments)
    files = download(args.name, args.directory)
    size = sum(path.stat().st_size for path in files)
    print(f"{args.directory} holds {len(files)} files of {size / 1e9:.1f} GB, as on the Hub. Next:")
    published = PUBLISHED[args.name]
    print(
        f"  talora_jax train --config {published.config} "
        f"--config.data.path={shlex.quote(str(args.directory))} "
        f"--config.model.weights={published.weights} --workdir RUN"
    )


if __name__ == "__main__":
    run_command(main)
