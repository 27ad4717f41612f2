"""Our contenders: what each builds, and the step that is timed."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.flops import count_flops
from benchmarks.harness import cores, peak_rss
from benchmarks.torchvision_stub import torchvision_or_stub
from benchmarks.tpu import choose_tasks
from talora_jax import config as config_lib
from talora_jax import sharding
from talora_jax.data import open_dataset
from talora_jax.data.dataset import Dataset
from talora_jax.data.pipeline import train_iterator
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import random_scene
from talora_jax.errors import UserError
from talora_jax.inference.masks.automatic import AutomaticMasks
from talora_jax.models.adapters import AdapterConfig, make_adapter
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SIZES, SamConfig
from talora_jax.rgb import read_rgb
from talora_jax.tasks import Task, make_task
from talora_jax.training.setup import assemble, make_model
from talora_jax.training.step import init_state, make_train_step
from talora_jax.weights.base_file import SHIPPED, read_description
from talora_jax.weights.build import build, load_sam
from weights_convert.__main__ import main as convert

# NYUv2 as MTAN packs it.
TASKS = ("semantic", "depth", "normals")
CLASSES = tuple(f"class {i}" for i in range(13))

Contender = tuple[Callable[[], None], dict[str, Any]]


def describe(size: str, image_size: int | None) -> tuple[None, dict[str, Any]]:
    """The architecture of a size, JSON-able."""
    sam = SIZES[size]()
    if image_size is not None:
        sam = dataclasses.replace(
            sam, encoder=dataclasses.replace(sam.encoder, image_size=image_size)
        )
    encoder = dataclasses.asdict(sam.encoder) | {"depth": sam.encoder.depth}
    return None, {"encoder": encoder, "decoder": dataclasses.asdict(sam.decoder)}


def encoder(architecture: dict[str, Any]) -> Contender:
    """The image encoder without adapters, float32, on one padded square."""
    config = sam_config(architecture).encoder
    model = build(lambda: ImageEncoder(config, AdapterConfig("none"), 1, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    images = jnp.asarray(random_image((config.image_size,) * 2))

    @jax.jit
    def encode(state, images):
        return nnx.merge(graphdef, state)(images, (0,))

    return _finished(lambda: encode(state, images)), _facts(state)


def joint_forward(
    architecture: dict[str, Any],
    original: Sequence[int],
    native_aspect: bool = False,
    last_quarter: bool = False,
    tasks: int = len(TASKS),
) -> Contender:
    """All tasks' maps of one image, from its own size and back to it."""
    config = make_config(original, native_aspect)
    sam = sam_config(architecture)
    if last_quarter:
        config.adapter.blocks = (-(sam.encoder.depth // 4),)
    chosen = choose_tasks(TASKS, tasks, len(CLASSES))
    graphdef, state = nnx.split(build(lambda: make_model(config, chosen, sam)))
    images = jnp.asarray(random_image(original))

    @jax.jit
    def forward(state, images):
        return nnx.merge(graphdef, state)(images)

    return _finished(lambda: forward(state, images)), _facts(state)


def training(
    architecture: dict[str, Any],
    original: Sequence[int],
    native_aspect: bool = False,
    last_quarter: bool = False,
) -> Contender:
    """The project's own train step on one image: forward, losses, backward, Adam."""
    config = make_config(original, native_aspect)
    sam = sam_config(architecture)
    if last_quarter:
        config.adapter.blocks = (-(sam.encoder.depth // 4),)
    _name_sizes(config, sam)
    mesh = sharding.make_mesh(**config.mesh)
    dataset = Dataset(
        config.data.name, TASKS, CLASSES, tuple(original), {"train": range(1000), "val": ()}
    )
    run = assemble(config, mesh, dataset, make_tasks(), parent=None)
    step = make_train_step(run)
    with jax.set_mesh(mesh):
        batch = sharding.shard_batch(random_batch(original), mesh)
    state = init_state(run)

    def train():
        nonlocal state
        with jax.set_mesh(mesh):
            state, scalars = step(state, run.frozen, batch)
            jax.block_until_ready((state, scalars))

    facts = _facts(run.trainable, run.frozen)
    return train, facts | {"trained": _count(run.trainable), "remat": config.model.remat}


def embeddings(architecture: dict[str, Any], kind: str, num_tasks: int) -> Contender:
    """`num_tasks` encodings of one image with an adapter of this kind.

    For the kind `none` the encodings are of so many images: the same frozen passes, no adapters.
    """
    config = sam_config(architecture).encoder
    adapter = AdapterConfig(kind)
    model = build(lambda: ImageEncoder(config, adapter, num_tasks, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    batch = 1 if adapter.per_task else num_tasks
    image = random_image((config.image_size,) * 2)
    images = jnp.asarray(np.repeat(image, batch, axis=0))

    @jax.jit
    def encode(state, images):
        return nnx.merge(graphdef, state)(images, tuple(range(num_tasks)))

    return _finished(lambda: encode(state, images)), _facts(state)


def adapter_flops(
    architecture: dict[str, Any], original: Sequence[int], kinds: Sequence[str]
) -> tuple[None, dict[str, Any]]:
    """Operations of one frozen pass of the encoder, and by kind of all that is computed.

    Counted from shapes: nothing is allocated, whatever the size.

    Returns:
      No step, and {"frozen": one pass, "kinds": {kind: {"passes", "adapters", "encode", "joint"}}}:
      encodings made, operations of all their adapters alone, of the encodings with adapters (which
      share one patch embedding), and of all from the image to its maps.
    """
    sam = sam_config(architecture)
    side = sam.encoder.image_size
    square = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    image = jax.ShapeDtypeStruct((1, *original, 3), jnp.float32)

    def count(make, call, x):
        graphdef, state = nnx.split(nnx.eval_shape(make))
        return count_flops(lambda state, x: call(nnx.merge(graphdef, state), x), state, x)

    def encoder(kind):
        return ImageEncoder(sam.encoder, AdapterConfig(kind), len(TASKS), rngs=nnx.Rngs(0))

    def adapters(kind, passes):
        """All blocks' adapters: each sees the grid of tokens once per encoding."""
        width, grid = sam.encoder.width, sam.encoder.grid
        tokens = jax.ShapeDtypeStruct((passes, 1, grid, grid, width), jnp.float32)
        config = AdapterConfig(kind)
        one = count(
            lambda: make_adapter(config, width, len(TASKS), rngs=nnx.Rngs(0)),
            lambda adapter, x: adapter(x, jnp.arange(passes)),
            tokens,
        )
        return sam.encoder.depth * one

    def joint(kind):
        config = make_config(original, native_aspect=False)
        config.adapter.kind = kind
        return make_model(config, make_tasks(), sam)

    task_ids = tuple(range(len(TASKS)))
    rows = {}
    for kind in kinds:
        passes = len(TASKS) if AdapterConfig(kind).per_task else 1
        rows[kind] = {
            "passes": passes,
            "adapters": adapters(kind, passes),
            "encode": count(lambda k=kind: encoder(k), lambda m, x: m(x, task_ids), square),
            "joint": count(lambda k=kind: joint(k), lambda m, x: m(x), image),
        }
    frozen = count(lambda: encoder("none"), lambda m, x: m(x, (0,)), square)
    return None, {"frozen": frozen, "kinds": rows}


def prepare_data(**data: Any) -> tuple[None, dict[str, Any]]:
    """Writes the samples, so that contenders only read.

    Returns:
      No step, and samples of all splits, their size H, W, and what preparing took: seconds, and the
      most memory resident so far, in bytes. Data that cannot be used end the process with a line.
    """
    start = time.perf_counter()
    try:
        dataset = open_dataset(data_config(**data).data, TASKS)
    except UserError as error:
        sys.exit(f"error: {error}")
    return None, {
        "samples": sum(len(source) for source in dataset.splits.values()),
        "image_size": dataset.image_size,
        "seconds": time.perf_counter() - start,
        "peak_rss": peak_rss(),
    }


def pipeline(data: dict[str, Any], batch_size: int, batches: int, threads: int) -> Contender:
    """Augmented batches from a pipeline that starts anew: no batch is ready before.

    Args:
      data: fields of `config.data`.
      threads: that read and augment; 0 makes each batch when it is asked for.
    """
    config = data_config(**data)
    dataset = open_dataset(config.data, TASKS)

    def step():
        iterator = batches_of(config, dataset, batch_size, threads)
        for _ in range(batches):
            next(iterator)

    return step, {"images": batch_size * batches}


def input_wait(
    architecture: dict[str, Any], data: dict[str, Any], batch_size: int, steps: int, threads: int
) -> tuple[None, dict[str, Any]]:
    """Trains for some steps, as `talora_jax.training.loop` does, and says what it waited for.

    Returns:
      No step, and seconds by step, {"total": [...], "waiting": [...]}; the first two are left out.
    """
    config = data_config(**data)
    config.batch_size = batch_size
    _name_sizes(config, sam_config(architecture))
    dataset = open_dataset(config.data, TASKS)
    mesh = sharding.make_mesh(**config.mesh)
    tasks = tuple(make_task(name, class_names=dataset.class_names) for name in TASKS)
    run = assemble(config, mesh, dataset, tasks, parent=None)
    train_step, state = make_train_step(run), init_state(run)
    iterator = batches_of(config, dataset, batch_size, threads)
    total, waiting = [], []
    with jax.set_mesh(mesh):
        for _ in range(steps + 2):
            start = time.perf_counter()
            batch = next(iterator)
            waiting.append(time.perf_counter() - start)
            state, scalars = train_step(state, run.frozen, sharding.shard_batch(batch, mesh))
            jax.block_until_ready(scalars)
            total.append(time.perf_counter() - start)
    return None, {"total": total[2:], "waiting": waiting[2:]}


def data_config(**data: Any) -> ml_collections.ConfigDict:
    """The default config with these fields of `config.data`."""
    config = make_config(data["image_size"], native_aspect=False)
    for field, value in data.items():
        config.data[field] = tuple(value) if isinstance(value, list) else value
    return config


def batches_of(
    config: ml_collections.ConfigDict, dataset: Dataset, batch_size: int, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches for one process."""
    return train_iterator(
        dataset.splits["train"],
        tasks=TASKS,
        image_size=dataset.image_size,
        batch_size=batch_size,
        seed=config.seed,
        augment=config.augment,
        num_threads=threads,
    )


def sam_and_image(checkpoint: str, image: str | None, folder: str) -> tuple[None, dict[str, Any]]:
    """A SAM as a .pth and as a base, and an image: what automatic masks are found with.

    Args:
      checkpoint: an official .pth, or: random (ViT-B's sizes, see `smooth_upscaling`), sam_small.
      image: a picture; None for a rendered room.
    """
    import torch

    with torchvision_or_stub():
        from segment_anything import sam_model_registry

    place = Path(folder)
    base = path = checkpoint
    if checkpoint == "sam_small":
        path = place / "sam.pth"
        convert([str(SHIPPED["sam_small"]), str(path)])
    else:
        base = place / "base.safetensors"
        if checkpoint == "random":
            path = place / "random.pth"
            torch.manual_seed(0)
            official = sam_model_registry["vit_b"]()
            smooth_upscaling(official)
            torch.save(official.state_dict(), path)
        convert([str(path), str(base)])
    if image is None:
        image = place / "room.png"
        Image.fromarray(render(random_scene(0, "val", 0), (480, 640))["image"]).save(image)
    config = read_description(base).config
    encoder = dataclasses.asdict(config.encoder) | {"depth": config.encoder.depth}
    return None, {
        "architecture": {"encoder": encoder, "decoder": dataclasses.asdict(config.decoder)},
        "checkpoint": str(path),
        "base": str(base),
        "image": str(image),
        "size": list(read_rgb(Path(image)).shape[:2]),
    }


def smooth_upscaling(official: Any) -> None:
    """Gives each 2×2 block that the decoder of a random SAM upscales to one value.

    Else blocks differ at random, a mask's outline runs by every second pixel, and on many a mask
    some logit is zero within what `segment_anything` rounds: its weights of an interpolation are
    float32. In float64 it finds other masks itself.
    """
    for layer in (0, 3):
        kernel = official.mask_decoder.output_upscaling[layer].weight.data  # [in, out, 2, 2]
        kernel[:] = kernel[:, :, :1, :1]


def automatic_masks(
    base: str, image: str, options: dict[str, Any], found: str, **others: Any
) -> Contender:
    """Masks of everything in an image; written to `found`, the first time."""
    del others
    masks = AutomaticMasks(load_sam(base), **options)
    rgb = read_rgb(Path(image))

    def step():
        records = [mask.record() for mask in masks.generate(rgb)]
        if not Path(found).exists():
            Path(found).write_text(json.dumps(records))

    return step, {"threads": cores()}


def sam_config(architecture: dict[str, Any]) -> SamConfig:
    """The sizes that `describe` gave."""
    encoder = {k: v for k, v in architecture["encoder"].items() if k != "depth"}
    return SamConfig(ImageEncoderConfig(**encoder), MaskDecoderConfig(**architecture["decoder"]))


def make_config(original: Sequence[int], native_aspect: bool) -> ml_collections.ConfigDict:
    """The released NYUv2 recipe, one image at a time, in float32."""
    config = config_lib.default()
    config.tasks = TASKS
    config.data.image_size = tuple(original)
    config.model.dtype = config.model.param_dtype = "float32"
    config.batch_size = config.eval_batch_size = 1
    config.model.native_aspect = native_aspect
    return config


def _name_sizes(config: ml_collections.ConfigDict, sam: SamConfig) -> None:
    """A run looks its sizes up by name, and these may be of no name."""
    config.model.size = "measured"
    SIZES[config.model.size] = lambda: sam


def make_tasks() -> tuple[Task, ...]:
    """NYUv2's, with 13, 1 and 3 channels."""
    return tuple(make_task(name, class_names=CLASSES) for name in TASKS)


def random_image(size: Sequence[int]) -> np.ndarray:
    """Noise in [0, 1], float32 [1, H, W, 3]."""
    return np.random.default_rng(0).random((1, *size, 3), np.float32)


def random_batch(size: Sequence[int]) -> dict[str, np.ndarray]:
    """An image and targets for it, of random classes, depths and directions."""
    rng = np.random.default_rng(1)
    normals = rng.normal(size=(1, *size, 3)).astype(np.float32)
    return {
        "image": random_image(size),
        "semantic": rng.integers(-1, len(CLASSES), (1, *size), np.int32),
        "depth": rng.uniform(1, 10, (1, *size, 1)).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def _finished(call: Callable[[], Any]) -> Callable[[], None]:
    """JAX returns before the work is done; a step must not."""

    def step():
        jax.block_until_ready(call())

    return step


def _facts(*states: nnx.State) -> dict[str, Any]:
    return {
        "parameters": sum(map(_count, states)),
        "device": jax.devices()[0].device_kind,
        "threads": cores(),
    }


def _count(state: nnx.State) -> int:
    return sum(x.size for x in jax.tree.leaves(state))
