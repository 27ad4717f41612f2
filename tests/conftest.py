"""Fixtures that several test files share."""

import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
COMPILED = REPOSITORY / ".jax_cache"
MAX_COMPILED = 2**31  # bytes

# A shell that starts the tests in the background has this ignored, here and in what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def compiled_folder() -> str:
    """Where programs are kept from one run to the next."""
    # JAX removes nothing from it.
    if sum(file.stat().st_size for file in COMPILED.glob("*")) > MAX_COMPILED:
        shutil.rmtree(COMPILED)
    return str(COMPILED)


# Tests compile far more than they compute. Set before JAX starts, and inherited by every process
# that a test starts: what one has compiled, none compiles again.
XLA_FLAGS = "--xla_backend_optimization_level=0"
# Less than half the time of a compilation, where XLA still has the choice: an unknown flag ends the
# process. In one part each, for threads that share two busy cores cost a fifth more.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled_folder()
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Of what tracing makes little is garbage, and looking for it took a fifth of the tests' time.
gc.set_threshold(50_000)

from jaxtyping import install_import_hook

# Shapes and dtypes of these packages are checked at every call, while a program is traced as well.
# Before anything imports them; processes that tests start run without.
install_import_hook(
    ["talora_jax.models", "talora_jax.tasks", "talora_jax.data"], "beartype.beartype"
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from talora_jax import config as config_lib
from talora_jax import sharding
from talora_jax.data import Dataset
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.geometry import Geometry
from talora_jax.models.msam import MSam
from talora_jax.models.sam import SIZES, Sam
from talora_jax.tasks import make_task
from talora_jax.training import setup
from talora_jax.training.setup import Run, assemble, learnt_file, parent_of
from talora_jax.weights import hub as hub_lib
from talora_jax.weights.base_file import Description, write_base
from talora_jax.weights.build import build, for_msam
from talora_jax.weights.state import tensors_of
from weights_convert.official import from_official

GOLDEN = TESTS / "goldens" / "mtsam_tiny.npz"
KINDS = {"semantic": "semantic", "depth": "depth", "normal": "normals"}
MAX_RESIDENT = 1.2e9  # bytes


def pytest_collection_finish() -> None:
    # What is there now stays: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    if {"start_python", "start_main"} & set(item.fixturenames):
        item.add_marker("process")


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped():
    """Programs that one file compiled serve few others, and stay in memory unless dropped."""
    yield
    statm = Path("/proc/self/statm")  # Linux alone
    if statm.exists():
        resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if resident > MAX_RESIDENT:
            jax.clear_caches()
            gc.collect()


@dataclasses.dataclass(frozen=True)
class Golden:
    """Numbers of the official PyTorch code at a tiny size, and the model built from its weights."""

    arrays: dict[str, np.ndarray]
    config: dict
    model: MSam
    tasks: tuple[str, ...]

    def geometry(self) -> Geometry:
        c = self.config
        return Geometry(tuple(c["original_hw"]), tuple(c["resized_hw"]), c["img_size"])

    def squares(self):
        """The official input: resized images in [0, 1], here padded to the square."""
        c = self.config
        height, width = c["resized_hw"]
        images = self.arrays["input/image_resized"].transpose(0, 2, 3, 1)
        pad = ((0, 0), (0, c["img_size"] - height), (0, c["img_size"] - width), (0, 0))
        return jnp.asarray(np.pad(images, pad))

    def state_dict(self) -> dict[str, np.ndarray]:
        return under(self.arrays, "state_dict/")

    def ours(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Official tensors (values, gradients, …) by our names. What is not there is zero."""
        zeros = {k: np.zeros_like(v) for k, v in self.state_dict().items()}
        return for_msam(from_official(zeros | tensors, self.tasks)[0], self.model)


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden() -> Golden:
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    config = json.loads(str(arrays.pop("config")))
    tasks = tuple(KINDS[kind] for kind in config["kinds"])
    base, architecture = from_official(under(arrays, "state_dict/"), tasks)
    sam = architecture.sam
    heads = config["decoder_heads"]
    sam = dataclasses.replace(sam, decoder=dataclasses.replace(sam.decoder, heads=heads))
    adapter = AdapterConfig("talora", tuple(config["ranks"]), config["scaling"], config["dropout"])
    channels = dict(zip(tasks, config["channels"], strict=True))
    model = build(
        lambda: MSam(sam, adapter, channels, pixel_normalisation=False, rngs=nnx.Rngs(0)), base
    )
    return Golden(arrays, config, model, tasks)


def load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def micro():
    """The smallest model that has every part; also registered as a size by that name."""
    return load(TESTS / "micro.py").MICRO


@pytest.fixture(scope="session")
def published() -> types.ModuleType:
    """Writes data sets as they are published: the module `tests/data/published.py`."""
    return load(TESTS / "data" / "published.py")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hugging Face Hub on this machine, with nothing in it: a `tests/hub_server.py` Server."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra `hub`")
    with load(TESTS / "hub_server.py").Server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", "a token")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # The library's, between one try and the next.
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        hub_lib.fetched.cache_clear()
        yield server


@pytest.fixture(scope="session")
def one_bucket():
    """What `bucket` empties: the clients look for the address once in a process."""
    pytest.importorskip("gcsfs", reason="needs the extra `gcs`")
    with load(TESTS / "bucket_server.py").Server() as server:
        os.environ |= server.environment
        yield server


@pytest.fixture
def bucket(one_bucket):
    """gs://bucket on this machine, with nothing in it: a `tests/bucket_server.py` Server."""
    one_bucket.objects.clear()
    one_bucket.refuses = {}
    return one_bucket


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder data set of 12 frames, 24×32: colour, class, depth and normals go together."""
    root = tmp_path_factory.mktemp("folder")
    for kind in ("image", "semantic", "depth", "normals"):
        (root / kind).mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        labels = np.kron(rng.integers(0, 3, (3, 4)), np.ones((8, 8), int)).astype(np.uint8)
        image = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[labels]
        image = (image + rng.integers(-20, 20, image.shape)).astype(np.uint8)
        normals = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]], np.float32)[labels]
        Image.fromarray(image).save(root / "image" / f"{i:03d}.png")
        Image.fromarray(labels).save(root / "semantic" / f"{i:03d}.png")
        np.save(root / "depth" / f"{i:03d}.npy", (1 + labels).astype(np.float32))
        np.save(root / "normals" / f"{i:03d}.npy", normals)
    return root


@pytest.fixture(scope="session")
def nano_base(micro, fill, tmp_path_factory) -> Path:
    """A base of the size `nano`, random numbers in every parameter."""
    sam = fill(lambda: Sam(SIZES["nano"](), rngs=nnx.Rngs(0)))
    path = tmp_path_factory.mktemp("base") / "sam_nano.safetensors"
    description = Description(sam.config, None, {"file": "sam_nano.pth"})
    write_base(path, tensors_of(nnx.state(sam)), description)
    return path


@pytest.fixture
def config(nano_base, folder, tmp_path_factory):
    """A run of `nano` on `folder`, from a base: four steps, a checkpoint every two."""
    config = config_lib.default()
    config.model.size = "nano"
    # The program that draws a whole model takes as long to compile as a training step.
    config.model.weights = str(nano_base)
    config.model.remat = "none"
    config.adapter.ranks = (4, 4, 2)
    config.data.name = "folder"
    config.data.path = str(folder)
    config.data.dir = str(tmp_path_factory.getbasetemp() / "records")
    config.data.image_size = (24, 32)
    config.data.class_names = ("red", "green", "blue")
    config.batch_size = config.eval_batch_size = 4
    config.steps = 4
    config.log_every = 1
    config.checkpoint_every = 2
    config.num_pictures = 1
    return config


@pytest.fixture
def linear(config, monkeypatch):
    """Makes `config` one of a model that is linear in an image's colours: it starts in no time, and
    all else is the same."""
    from tests.kills import make_linear

    monkeypatch.setattr(setup, "make_model", make_linear)
    config.adapter.kind, config.model.weights = "none", None


@pytest.fixture(scope="session")
def start_python():
    """Starts Python in a process of its own, in which there are so many (fake) devices."""

    def start(*arguments: str, devices: int = 1) -> subprocess.Popen:
        many = f" --xla_force_host_platform_device_count={devices}" if devices > 1 else ""
        environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + many}
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def start_main(start_python):
    """Starts `tests/micro.py`, the command line with the size `micro`."""
    return lambda *arguments, **how: start_python(str(TESTS / "micro.py"), *arguments, **how)


@pytest.fixture(scope="session")
def fill() -> Callable[[Callable[[], nnx.Module]], nnx.Module]:
    """Makes a model with random numbers in every parameter; nothing is compiled for it."""

    def fill(make):
        graphdef, state = nnx.split(nnx.eval_shape(make))
        rng = np.random.default_rng(0)

        def draw(path, variable):
            noise = rng.normal(size=variable.shape)
            noise = 1 + 0.1 * noise if path[-1] == "scale" else 0.2 * noise
            # Of NumPy's array `jnp.asarray` compiles a program for each shape.
            return variable.replace(jax.device_put(noise.astype(variable.dtype)))

        return nnx.merge(graphdef, nnx.map_state(draw, state))

    return fill


@pytest.fixture(scope="session")
def micro_sam(micro, fill) -> Sam:
    """The promptable model of that size, random numbers in every parameter."""
    return fill(lambda: Sam(micro, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="session")
def learn(micro):
    """Makes the run of a config that needs no data, and what it might have learnt."""

    def learn(config, seed: int) -> tuple[Run, nnx.State]:
        classes = ("red", "green", "blue")
        tasks = tuple(make_task(name, class_names=classes) for name in config.tasks)
        dataset = Dataset("folder", tuple(config.tasks), classes, (24, 32), {})
        mesh = sharding.make_mesh(**config.mesh)
        run = assemble(config, mesh, dataset, tasks, parent_of(config))
        rng = np.random.default_rng(seed)
        learnt = jax.tree.map(
            lambda x: jax.device_put(x + rng.normal(0, 0.1, x.shape).astype(np.float32)),
            jax.device_get(run.trainable),  # NumPy adds, and compiles nothing
        )
        return run, learnt

    return learn


def nano_config(**fields):
    config = config_lib.default()
    config.model.size = "nano"
    config.adapter.ranks = (4, 4, 2)
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="session")
def shelf(learn, nano_base, tmp_path_factory) -> Path:
    """A folder as a user has it, with three tasks in every adapter:

    run/                    the workdir of a run that started from random numbers
    sam_nano.safetensors    a base
    adapter.safetensors     trained on it
    other.safetensors       trained on it, too
    photo.jpg               80×60
    """
    shelf = tmp_path_factory.mktemp("shelf")
    base = Path(shutil.copy(nano_base, shelf))
    (shelf / "run").mkdir()
    for seed, (name, weights) in enumerate(
        {"run/adapter": "", "adapter": str(base), "other": str(base)}.items()
    ):
        config = nano_config(**{"model.weights": weights})
        run, learnt = learn(config, seed)
        learnt_file(run, learnt).write(shelf / f"{name}.safetensors")
        if not weights:
            (shelf / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    coarse.resize((80, 60)).save(shelf / "photo.jpg")
    return shelf
