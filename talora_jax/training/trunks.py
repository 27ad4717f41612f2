"""What the trunk gives of each training image, kept on disk: no epoch or run computes it again.

The trunk, the blocks before the first adapted one, is the base's: of an image that comes back it
always gives the same. A file of `config.trunk_dir` is of one image, which is known by its pixels,
in a folder that is of one trunk: whatever else what it gives depends on is in the folder's name. So
what is found is what would be computed, and what changes is another file.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Num

from talora_jax import storage
from talora_jax.errors import UserError
from talora_jax.files import write_atomically
from talora_jax.models.adapters import AdapterConfig
from talora_jax.sharding import batch_sharding, shard_batch
from talora_jax.training.code import digest_of
from talora_jax.training.setup import Run, how_to_compute, sizes
from talora_jax.weights.assemble import resolve_dtype

_CHECKSUM = 4  # bytes, after the numbers


class Trunks:
    """Completes batches by what the trunk gives of their images."""

    def __init__(self, run: Run, tell: Callable[[str], None]):
        """
        Args:
          run: one whose config names a folder, in this process alone.
          tell: is given a line on what is kept, and where.

        Raises:
          UserError: the folder cannot be made, or has no room.
        """
        self._run, config = run, run.config

        def trunk(trainable, frozen, images):
            return nnx.merge(run.graphdef, trainable, frozen).trunk(images)

        self._trunk = jax.jit(trunk, out_shardings=batch_sharding(run.mesh))
        size = run.dataset.image_size
        images = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
        gives = jax.eval_shape(trunk, run.trainable, run.frozen, images)
        self._shape, self._dtype = gives.shape[1:], gives.dtype
        blocks = AdapterConfig.of(config.adapter).adapted(sizes(config).encoder.depth).start
        how = how_to_compute(config)
        about = {
            "base": run.fingerprint,
            "blocks": blocks,
            "gives": str(gives),
            "image_size": size,
            "native_aspect": how["native_aspect"],
            "attention": how["attention"],
            "param_dtype": str(resolve_dtype(config.model.param_dtype)),
            "pixel_normalisation": config.model.pixel_normalisation,
            "code": digest_of("models"),
            "jax": f"{jax.__version__} on {jax.default_backend()}",
        }
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = storage.local(config.trunk_dir) / name
        self._make_room(tell, blocks)

    def completed(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with `trunk` [B, h, w, D]; what is not there yet is computed, and kept.

        Raises:
          UserError: it cannot be written.
        """
        paths = [self._folder / _name_of(image) for image in batch["image"]]
        found = [self._kept(path) for path in paths]
        if any(x is None for x in found):
            computed = self._computed(batch["image"])
            for i, path in enumerate(paths):
                if found[i] is None:
                    octets = computed[i].tobytes()
                    write_atomically(path, octets + _checksum(octets))
                    found[i] = computed[i]
        return {**batch, "trunk": np.stack(found)}

    def _computed(self, images: Float[np.ndarray, "B H W 3"]) -> Num[np.ndarray, "B h w D"]:
        run = self._run
        parts = (
            self._trunk(run.trainable, run.frozen, shard_batch({"image": x}, run.mesh)["image"])
            for x in np.split(images, run.config.accumulate)
        )
        return np.concatenate([np.asarray(part) for part in parts])

    def _kept(self, path: Path) -> Num[np.ndarray, "h w D"] | None:
        """What a file holds; None where there is none, or half of one."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        octets, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
        if len(octets) != self._bytes or checksum != _checksum(octets):
            return None
        return np.frombuffer(octets, self._dtype).reshape(self._shape)

    @property
    def _bytes(self) -> int:
        return int(np.prod(self._shape)) * self._dtype.itemsize

    def _make_room(self, tell: Callable[[str], None], blocks: int) -> None:
        images = len(self._run.dataset.splits["train"]) * (1 + self._run.config.augment.flip)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            there = sum(1 for _ in self._folder.iterdir())
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise UserError(
                f"config.trunk_dir: {self._folder}: {error.strerror or error}"
            ) from None
        needed = max(0, images - there) * self._bytes
        if needed > free:
            raise UserError(
                f"config.trunk_dir: {needed / 1e9:.1f} GB are to come in {self._folder}, and "
                f"{free / 1e9:.1f} GB are free there"
            )
        tell(
            f"what the first {blocks} blocks give of an image, {self._bytes / 1e6:.1f} MB, is kept "
            f"in {self._folder}: {there} of up to {images} are there"
        )


def _name_of(image: Float[np.ndarray, "H W 3"]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).hexdigest()


def _checksum(octets: bytes) -> bytes:
    return zlib.crc32(octets).to_bytes(_CHECKSUM, "little")
