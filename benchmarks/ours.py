"""Our contenders: what each builds, and the step that is timed.

What a contender imports counts as its memory: those of data and of automatic masks stand apart, in
`our_data` and `our_masks`.
"""

import atexit
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from benchmarks.flops import count_flops
from benchmarks.harness import cores
from benchmarks.tpu import choose_tasks
from talora_jax import config as config_lib
from talora_jax import sharding
from talora_jax.data.dataset import Dataset
from talora_jax.errors import UserError
from talora_jax.models import attention_kernels
from talora_jax.models.adapters import AdapterConfig, make_adapter
from talora_jax.models.attention import attend
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SIZES, SamConfig
from talora_jax.tasks import Task, make_task
from talora_jax.training.setup import assemble, how_to_compute, make_model
from talora_jax.training.step import init_state, make_train_step
from talora_jax.training.trunks import Trunks
from talora_jax.weights.build import build

# NYUv2 as MTAN packs it.
TASKS = ("semantic", "depth", "normals")
CLASSES = tuple(f"class {i}" for i in range(13))

Contender = tuple[Callable[[], int | None], dict[str, Any]]


def describe(size: str, image_size: int | None) -> tuple[None, dict[str, Any]]:
    """The architecture of a size, JSON-able."""
    sam = SIZES[size]()
    if image_size is not None:
        sam = dataclasses.replace(
            sam, encoder=dataclasses.replace(sam.encoder, image_size=image_size)
        )
    encoder = dataclasses.asdict(sam.encoder) | {"depth": sam.encoder.depth}
    return None, {"encoder": encoder, "decoder": dataclasses.asdict(sam.decoder)}


def device() -> tuple[None, dict[str, Any]]:
    """The first device: its platform, as JAX names it, its kind, and which kernels of attention
    can run there in bfloat16."""
    first = jax.devices()[0]
    words = [word for word in attention_kernels.KERNELS if _can_run(word, first)]
    return None, {"platform": first.platform, "kind": first.device_kind, "attention": words}


def encoder(
    architecture: dict[str, Any], dtype: str = "float32", attention: str = "xla"
) -> Contender:
    """The image encoder without adapters on one padded square."""
    config = sam_config(architecture).encoder
    make = functools.partial(ImageEncoder, config, AdapterConfig("none"), 1)
    how = {"attention": _kernel(attention, dtype), "dtype": dtype}
    graphdef, state = nnx.split(build(lambda: make(**how, rngs=nnx.Rngs(0))))
    state = _stored(state, dtype)
    images = jnp.asarray(random_image((config.image_size,) * 2))

    @jax.jit
    def encode(state, images):
        return nnx.merge(graphdef, state)(images, (0,))

    return _finished(lambda: encode(state, images)), _facts(state)


def attention_differences(
    architecture: dict[str, Any], words: Sequence[str], dtype: str
) -> tuple[None, dict[str, dict[str, float]]]:
    """How far the kernels of a global block's attention are from float32, by word.

    Returns:
      No step, and {word: {"output", "gradients"}}: the largest difference of each, divided by the
      largest number of the array it is in.
    """
    config = sam_config(architecture).encoder
    grid, width = config.grid, config.width // config.heads
    rng = np.random.default_rng(0)
    shape = (3, 1, 1, config.heads, grid, grid, width)
    tables = 0.1 * rng.normal(size=(2, 2 * grid - 1, width))
    inputs = [jnp.asarray(x, dtype) for x in (*rng.normal(size=shape), *tables)]

    def with_gradients(attend, inputs):
        out, pull = jax.vjp(attend, *inputs)
        return out, *pull(jnp.cos(out))

    def difference(ours, exact):
        return float(jnp.abs(ours.astype(jnp.float32) - exact).max() / jnp.abs(exact).max())

    in_float32 = [x.astype(jnp.float32) for x in inputs]
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(functools.partial(with_gradients, attend))(in_float32)
    differences = {}
    for word in words:
        kernel = attention_kernels.KERNELS[_kernel(word, dtype)]
        found = jax.jit(functools.partial(with_gradients, kernel))(inputs)
        output, *gradients = map(difference, found, exact)
        differences[word] = {"output": output, "gradients": max(gradients)}
    return None, differences


def joint_forward(
    architecture: dict[str, Any],
    original: Sequence[int],
    native_aspect: bool = False,
    last_quarter: bool = False,
    tasks: int = len(TASKS),
    dtype: str = "float32",
    attention: str = "xla",
) -> Contender:
    """All tasks' maps of one image, from its own size and back to it."""
    config = make_config(original, native_aspect, dtype, _kernel(attention, dtype))
    sam = sam_config(architecture)
    if last_quarter:
        config.adapter.blocks = (-(sam.encoder.depth // 4),)
    chosen = choose_tasks(TASKS, tasks, len(CLASSES))
    graphdef, state = nnx.split(build(lambda: make_model(config, chosen, sam)))
    state = _stored(state, dtype)
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
    kept_trunk: bool = False,
    dtype: str = "float32",
    attention: str = "xla",
) -> Contender:
    """The project's own train step on one image: forward, losses, backward, Adam."""
    config = make_config(original, native_aspect, dtype, _kernel(attention, dtype))
    sam = sam_config(architecture)
    if last_quarter or kept_trunk:
        config.adapter.blocks = (-(sam.encoder.depth // 4),)
    name_sizes(config, sam)
    mesh = sharding.make_mesh(**config.mesh)
    dataset = Dataset(
        config.data.name, TASKS, CLASSES, tuple(original), {"train": range(1000), "val": ()}
    )
    run = assemble(config, mesh, dataset, make_tasks(), parent=None)
    step = make_train_step(run)
    batch = random_batch(original)
    with jax.set_mesh(mesh):
        on_device = sharding.shard_batch(batch, mesh)
    state = init_state(run)
    if kept_trunk:
        folder = tempfile.TemporaryDirectory()
        atexit.register(folder.cleanup)  # which keeps it until then
        config.trunk_dir = folder.name
        trunks = Trunks(run, lambda line: None)

    def train():
        nonlocal state
        with jax.set_mesh(mesh):
            # Read from disk each time, as of batches that differ.
            given = sharding.shard_batch(trunks.completed(batch), mesh) if kept_trunk else on_device
            state, scalars = step(state, run.frozen, given)
            jax.block_until_ready((state, scalars))
        return _device_peak()

    facts = _facts(run.trainable, run.frozen)
    remat = how_to_compute(config)["remat"]
    return train, facts | {"trained": _count(run.trainable), "remat": remat}


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


def sam_config(architecture: dict[str, Any]) -> SamConfig:
    """The sizes that `describe` gave."""
    encoder = {k: v for k, v in architecture["encoder"].items() if k != "depth"}
    return SamConfig(ImageEncoderConfig(**encoder), MaskDecoderConfig(**architecture["decoder"]))


def make_config(
    original: Sequence[int],
    native_aspect: bool,
    dtype: str = "float32",
    attention: str = "xla",
) -> ml_collections.ConfigDict:
    """The released NYUv2 recipe, one image at a time; frozen weights are of `dtype`, too."""
    config = config_lib.default()
    config.tasks = TASKS
    config.data.image_size = tuple(original)
    config.model.dtype = config.model.param_dtype = dtype
    config.model.attention = attention
    config.batch_size = config.eval_batch_size = 1
    config.model.native_aspect = native_aspect
    return config


def name_sizes(config: ml_collections.ConfigDict, sam: SamConfig) -> None:
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
        return _device_peak()

    return step


def _device_peak() -> int | None:
    stats = jax.devices()[0].memory_stats()  # None on a CPU
    return stats and stats["peak_bytes_in_use"]


def _kernel(attention: str, dtype: str) -> str:
    """What a word of `config.model.attention` means here.

    Raises:
      UserError: that kernel cannot run.
    """
    attention_kernels.check(attention, jax.devices()[0], dtype)
    return attention_kernels.choose(attention, jax.default_backend())


def _can_run(word: str, device: jax.Device) -> bool:
    try:
        attention_kernels.check(word, device, "bfloat16")
    except UserError:
        return False
    return True


def _stored(state: nnx.State, dtype: str) -> nnx.State:
    """Parameters as prediction stores them."""
    return jax.tree.map(lambda x: x.astype(dtype), state)


def _facts(*states: nnx.State) -> dict[str, Any]:
    return {
        "parameters": sum(map(_count, states)),
        "device": jax.devices()[0].device_kind,
        "threads": cores(),
    }


def _count(state: nnx.State) -> int:
    return sum(x.size for x in jax.tree.leaves(state))
