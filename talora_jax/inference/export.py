"""Writes a trained model as programs and as merged files; the command is `talora_jax.export`."""

import argparse
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
import safetensors.numpy
from flax import nnx

from talora_jax.errors import UserError
from talora_jax.files import replacing
from talora_jax.inference import run_exported
from talora_jax.inference.model import tasks_of
from talora_jax.inference.onnx import export as onnx_export
from talora_jax.inference.programs import (
    Trained,
    described,
    load,
    make_program,
    outputs_of,
    task_rows,
    weights_of,
)
from talora_jax.task_names import in_paths
from talora_jax.tasks import Task
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.base_file import Description, write_base
from talora_jax.weights.build import merged

# What is written unless the command line says otherwise.
PLATFORMS = ("cpu", "cuda", "tpu")
PARTS = ("program", "merged")
WEIGHTS = "weights.safetensors"
# Of float32 on a CPU, between program and model: far above rounding, which is 1e-5 but for
# directions of short vectors, and far below what any mistake would make.
TOLERANCE = 1e-3


def export(args: argparse.Namespace) -> None:
    """Does what the command line says.

    Args:
      args: as `talora_jax.export` reads them.

    Raises:
      UserError: it cannot be done; nothing is left half-written.
    """
    # All that can be known to be wrong is told before any work is done.
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}, expected at least 1")
    if args.size and min(args.size) < 1:
        raise UserError(f"--size is {args.size[0]} {args.size[1]}, expected two positive numbers")
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise UserError(f"{args.out} exists and is not empty: name another OUT, or remove it first")

    if args.format == "onnx":
        for flag in ("platforms", "parts"):
            if getattr(args, flag):
                raise UserError(f"--{flag} is for --format jaxexport; ONNX files run everywhere")
        onnx_export.check_installed()
        if onnx_export.names_base(args.workdir):
            onnx_export.export_sam(args)
            return
    args.platforms = args.platforms or PLATFORMS
    args.parts = args.parts or PARTS

    path = find(args.workdir)
    file = AdapterFile.read(path)
    chosen = _choose(tasks_of(file), args.tasks)
    size = tuple(args.size or file.config.get("data", {}).get("image_size") or ())
    if len(size) != 2 and "program" in args.parts:
        raise UserError("--size is missing: the run's images have sizes of their own; give H W")

    trained = load(file, path, args.base, force=args.force)
    if args.format == "onnx":
        onnx_export.export_tasks(trained, chosen, size, args)
        return
    with replacing(args.out) as folder:
        folder.mkdir(parents=True)
        if "program" in args.parts:
            write_program(trained, folder, chosen, size, args.platforms, args.batch_size)
        if "merged" in args.parts:
            for task in chosen:
                file = f"{in_paths(task.name)}.safetensors"
                write_merged(trained, folder / "merged" / file, task)
        _report(trained, folder, args)
    print(f"wrote {args.out}")


def write_program(
    trained: Trained,
    folder: Path,
    tasks: Sequence[Task],
    size: tuple[int, int],
    platforms: Sequence[str],
    batch_size: int | None,
) -> None:
    """Writes a program for each platform, their weights, and how to run them.

    Raises:
      UserError: the installed jax cannot lower the model for one of the platforms.
    """
    weights = weights_of(trained.model)
    batch = batch_size or jax.export.symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    # Platforms of one dtype share a program, which is traced once.
    program = functools.cache(
        lambda dtype: jax.jit(make_program(trained, tasks, dtype, batch_size))
    )
    for platform in platforms:
        dtype = trained.file.dtype
        if dtype == "auto":
            dtype = "float32" if platform == "cpu" else "bfloat16"
        try:
            exported = jax.export.export(program(dtype), platforms=[platform])(abstract, images)
        except Exception as error:
            # Which exception it is depends on the operation that has no lowering.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--platforms: jax {jax.__version__} cannot lower this model for {platform}: "
                f"{reason}"
            ) from error
        (folder / f"model_{platform}.jaxexport").write_bytes(exported.serialize())
    safetensors.flax.save_file(weights, folder / WEIGHTS)
    # safetensors makes files for their owner alone.
    (folder / WEIGHTS).chmod(0o644)
    tells = described(trained, tasks, size, batch_size)
    (folder / "model.json").write_text(json.dumps(tells, indent=2) + "\n")
    (folder / "README.md").write_text(_readme(tasks, tells))
    shutil.copyfile(run_exported.__file__, folder / "run.py")


def write_merged(trained: Trained, path: Path, task: Task) -> None:
    """Writes one task's SAM as a base; see `talora_jax.weights.build.merged`."""
    tensors = merged(trained.model, task.name)
    tensors |= {name: x for name, x in trained.base.prompts.items() if name not in tensors}
    source = {
        "file": trained.path.name,
        "sha256": hashlib.sha256(trained.path.read_bytes()).hexdigest(),
        "base": Path(trained.base.file).name,
        "task": task.name,
        "pixel_normalisation": trained.file.pixel_normalisation,
        "native_aspect": trained.file.native_aspect,
    }
    path.parent.mkdir(exist_ok=True)
    write_base(path, tensors, Description(trained.base.sam, (task.name,), source))


def _choose(tasks: tuple[Task, ...], names: Sequence[str] | None) -> tuple[Task, ...]:
    known = {task.name: task for task in tasks}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UserError(f"--tasks: unknown {unknown[0]!r}, this model has {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names or known))


def _readme(tasks: Sequence[Task], tells: dict) -> str:
    height, width = tells["image_size"]
    number = tells["batch_size"] or "any number of them at once"
    lines = [
        f"# {', '.join(task.name for task in tasks)}",
        "",
        f"Takes uint8 RGB images of {height}×{width} pixels (batch: {number}) and gives",
        "",
        *task_rows(tells),
    ]
    return "\n".join(
        [
            *lines,
            "",
            "    pip install jax flatbuffers numpy safetensors pillow",
            "    python run.py photo.jpg predictions.npz",
            "",
            "or from Python, without `run.py`:",
            "",
            "```python",
            "import jax",
            "from jax import export",
            "from safetensors.flax import load_file",
            "",
            "platform = export.default_export_platform()  # cpu, cuda, rocm or tpu",
            'with open(f"model_{platform}.jaxexport", "rb") as file:',
            "    program = export.deserialize(file.read())",
            f'weights = load_file("{WEIGHTS}")',
            "predict = jax.jit(program.call)  # the first call compiles",
            f"arrays = predict(weights, images)  # images: uint8 [batch, {height}, {width}, 3]",
            "```",
            "",
        ]
    )


def _report(trained: Trained, folder: Path, args: argparse.Namespace) -> None:
    """Prints sizes and load times, and how far the program for this machine is from the model.

    Raises:
      UserError: they are further apart than rounding explains.
    """
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".jaxexport", ".safetensors")):
        print(f"{path.relative_to(folder)!s:32} {path.stat().st_size / 1e6:10.2f} MB")
    here = jax.export.default_export_platform()
    if "program" not in args.parts or here not in args.platforms or args.no_check:
        return
    start = time.perf_counter()
    predict = run_exported.load(folder, here)
    loaded = time.perf_counter()
    told = json.loads((folder / "model.json").read_text())
    shape = (args.batch_size or 1, *told["image_size"], 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = predict(images)
    ended = time.perf_counter()
    print(f"{here}: loads in {loaded - start:.2f} s, the first call took {ended - loaded:.2f} s")

    tasks = [task for task in trained.tasks if task.name in told["tasks"]]
    live = nnx.jit(lambda model, images: outputs_of(model, tasks, images))
    expected = jax.device_get(live(trained.model, jnp.asarray(images)))
    distance = {
        name: _distance(found[name], x) for name, x in expected.items() if x.dtype.kind == "f"
    }
    name = max(distance, key=distance.get)
    print(f"largest difference from the model on a random image: {distance[name]:.1e} ({name})")
    in_float32 = here == "cpu" and trained.file.dtype != "bfloat16"
    if in_float32 and not distance[name] <= TOLERANCE:
        raise UserError(
            f"the program's {name} differs from the model's by {distance[name]:.1e}, more than "
            f"{TOLERANCE:.0e}: nothing was written"
        )


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative where values exceed 1."""
    return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))
