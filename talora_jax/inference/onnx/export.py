"""Writes a trained model, or a promptable SAM, as ONNX files; see `talora_jax.export`."""

import argparse
import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from talora_jax.errors import UserError
from talora_jax.files import replacing
from talora_jax.inference.programs import (
    Trained,
    described,
    make_program,
    task_rows,
    weights_of,
)
from talora_jax.models.sam import Sam
from talora_jax.tasks import Task
from talora_jax.weights.base_file import base_path, is_base
from talora_jax.weights.build import load_sam

# Of float32 between onnxruntime and JAX: of one channel, metres among them, and of other numbers.
TOLERANCE_OF_ONE = 1e-4
TOLERANCE = 1e-3
# A file of more than this keeps its weights in a second one beside it; ONNX allows 2 GB.
LARGEST = 1_900_000_000

# How to use the files, which lies beside them as run_onnx.py.
SAM_EXAMPLE, TASKS_EXAMPLE = (
    Path(__file__).with_name(f"run_{name}.py") for name in ("sam", "tasks")
)

Arrays = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Program:
    """What becomes one ONNX file.

    Attributes:
      name: of the file, without `.onnx`.
      function: takes the weights and the inputs, gives arrays by name.
      weights: a tree of arrays.
      inputs: their shapes, by name; with symbols where lengths are free.
    """

    name: str
    function: Callable
    weights: object
    inputs: Shapes


def check_installed() -> None:
    """Refuses to begin without what writes and checks the files.

    Raises:
      UserError: says what to install.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}, which is not installed: "
            "pip install 'talora_jax[onnx]'"
        ) from None


def names_base(source: Path) -> bool:
    """Whether this means a base, by its path or name, and not what a run left."""
    with contextlib.suppress(UserError):  # the Hub has none
        return is_base(base_path(source))
    return False


def export_sam(args: argparse.Namespace) -> None:
    """Writes a base's encoder and decoder.

    Raises:
      UserError: it cannot be done; nothing is left half-written.
    """
    for flag in ("tasks", "batch_size", "base"):
        if getattr(args, flag) is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} is for a trained run, and {args.workdir} is a base: "
                "its encoder takes one image at a time"
            )
    sam = load_sam(args.workdir)
    side = sam.config.encoder.image_size
    size = tuple(args.size or (side, side))
    programs = sam_programs(sam, size)
    with replacing(args.out) as folder:
        folder.mkdir(parents=True)
        files = [_written(program, folder) for program in programs]
        if not args.no_check:
            random = np.random.default_rng(0)
            image = {"image": random.integers(0, 256, (*size, 3), np.uint8)}
            embeddings = _checked(programs[0], folder, image)["embeddings"]
            for prompts in (1, 3):
                _checked(programs[1], folder, _some_prompts(programs[1], prompts, embeddings, size))
        tells = {
            "image_size": list(size),
            "labels": {"on the object": 1, "off it": 0, "box, upper left": 2}
            | {"box, lower right": 3, "no point": -1, "absent": -2},
        }
        title = f"SAM, {sam.config.in_words()}"
        _describe(folder, title, files, tells, _SAM_NOTES, SAM_EXAMPLE, _SAM_JS)
    print(f"wrote {args.out}")


def export_tasks(
    trained: Trained, tasks: Sequence[Task], size: tuple[int, int], args: argparse.Namespace
) -> None:
    """Writes a trained model as one file.

    Raises:
      UserError: it cannot be done; nothing is left half-written.
    """
    batch = args.batch_size or 1
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    function = make_program(trained, tasks, "float32", batch)
    program = Program("model", function, weights_of(trained.model), {"images": images})
    with replacing(args.out) as folder:
        folder.mkdir(parents=True)
        files = [_written(program, folder)]
        if not args.no_check:
            some = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
            _checked(program, folder, {"images": some})
        tells = described(trained, tasks, size, batch)
        title = ", ".join(task.name for task in tasks)
        _describe(folder, title, files, tells, task_rows(tells), TASKS_EXAMPLE, _TASKS_JS)
    print(f"wrote {args.out}")


def sam_programs(sam: Sam, size: tuple[int, int]) -> tuple[Program, Program]:
    """The encoder and the decoder of a SAM, for images of one size.

    Any number P of prompts goes through the decoder at once, each of any number n of points.
    """
    graphdef, weights = nnx.split(sam)
    geometry = sam.geometry(size)

    def encode(weights, image):
        sam = nnx.merge(graphdef, weights)
        padded = geometry.to_padded(image[None].astype(jnp.float32) / 255)
        return {"embeddings": sam.encode(padded)}

    image = {"image": jax.ShapeDtypeStruct((*size, 3), jnp.uint8)}
    embeddings = jax.eval_shape(encode, weights, *image.values())["embeddings"]
    low = (4 * embeddings.shape[1], 4 * embeddings.shape[2])
    rows, columns = geometry.matrices_from_padded(low)

    def decode(weights, embeddings, points, labels, masks, has_mask):
        sam = nnx.merge(graphdef, weights)
        points = points * jnp.array(geometry.points_to_square(np.ones(2)), jnp.float32)
        low_res, iou = sam.decode(
            embeddings,
            points[None],
            labels[None],
            masks[None],
            has_mask=has_mask[None],
            multimask=None,
        )
        # One axis after the other, where it is: as `geometry.from_padded`, but for maps in rows.
        logits = jnp.einsum("yh,pmhw->pmyw", rows, low_res[0], precision="highest")
        logits = jnp.einsum("pmyw,xw->pmyx", logits, columns, precision="highest")
        return {"logits": logits, "low_res": low_res[0], "iou": iou[0]}

    prompts, number = jax.export.symbolic_shape("P, n")
    inputs = {
        "embeddings": embeddings,
        "points": jax.ShapeDtypeStruct((prompts, number, 2), jnp.float32),
        "labels": jax.ShapeDtypeStruct((prompts, number), jnp.int32),
        "masks": jax.ShapeDtypeStruct((prompts, *low), jnp.float32),
        "has_mask": jax.ShapeDtypeStruct((prompts,), jnp.bool_),
    }
    return Program("encoder", encode, weights, image), Program("decoder", decode, weights, inputs)


def _some_prompts(program: Program, prompts: int, embeddings: np.ndarray, size) -> Arrays:
    """Prompts to compare with: points of every kind, every other prompt with a mask."""
    random = np.random.default_rng(prompts)
    labels = np.resize(np.array([1, 0, -1, 2, 3, -2], np.int32), (prompts, 1 + prompts))
    low = program.inputs["masks"].shape[1:]
    return {
        "embeddings": embeddings,
        "points": random.uniform(0, size[::-1], (*labels.shape, 2)).astype(np.float32),
        "labels": labels,
        "masks": random.normal(0, 5, (prompts, *low)).astype(np.float32),
        "has_mask": np.arange(prompts) % 2 == 1,
    }


def _written(program: Program, folder: Path) -> Path:
    """Writes a program.

    Raises:
      UserError: the model has an operation for which there is no ONNX form here.
    """
    # Imported here: without the extra `onnx` there is no such module.
    import onnx

    from talora_jax.inference.onnx.program import to_onnx

    path = folder / f"{program.name}.onnx"
    try:
        model = to_onnx(program.function, [program.weights], program.inputs)
    except NotImplementedError as error:
        raise UserError(
            f"--format onnx: {program.name} has an operation that is not known in ONNX here: "
            f"{error}; --format jaxexport has every one"
        ) from None
    size = sum(len(x.raw_data) for x in model.graph.initializer)
    beside = {"save_as_external_data": True, "location": f"{path.name}.data"}
    onnx.save_model(model, path, **(beside if size > LARGEST else {}))
    onnx.checker.check_model(path)
    for file in sorted(folder.glob(f"{path.name}*")):
        print(f"{file.name:32} {file.stat().st_size / 1e6:10.2f} MB")
    return path


def _checked(program: Program, folder: Path, inputs: Arrays) -> Arrays:
    """What onnxruntime gives for these inputs, compared with what JAX gives.

    Raises:
      UserError: they are further apart than rounding explains.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        folder / f"{program.name}.onnx", options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    found, there = _timed(lambda: dict(zip(names, session.run(None, inputs), strict=True)))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        program_of_jax = jax.jit(program.function)
        expected, here = _timed(
            lambda: jax.device_get(program_of_jax(program.weights, *inputs.values()))
        )
    name, distance, allowed = farthest(found, expected)
    print(
        f"{program.name}: onnxruntime {there:.3f} s, jax {here:.3f} s; largest difference "
        f"{distance:.1e} ({name})"
    )
    if not distance <= allowed:
        raise UserError(
            f"{program.name}.onnx: what onnxruntime {onnxruntime.__version__} gives as {name} "
            f"differs from JAX's by {distance:.1e}, more than {allowed:.0e}: nothing was written"
        )
    return found


def farthest(found: Mapping, expected: Mapping) -> tuple[str, float, float]:
    """Of all arrays the one that is farthest from what was expected: name, distance, tolerance.

    A label is as far as the expected one's probability is above its own: none, for the same label.
    Other numbers are compared relatively where they exceed 1.
    """
    distances = {}
    for name, x in expected.items():
        if x.dtype.kind == "i":
            probability = expected[f"{name}_probabilities"]
            best, ours = (
                np.take_along_axis(probability, labels[..., None], axis=-1)
                for labels in (x, found[name])
            )
            distance, allowed = np.max(best - ours), TOLERANCE_OF_ONE
        else:
            distance = np.max(np.abs(found[name] - x) / np.maximum(1, np.abs(x)))
            allowed = TOLERANCE_OF_ONE if x.ndim == 3 else TOLERANCE
        distances[name] = (float(distance), allowed)
    # NaN is farther than anything.
    name = max(distances, key=lambda name: np.nan_to_num(np.divide(*distances[name]), nan=np.inf))
    return (name, *distances[name])


def _timed(run: Callable[[], Arrays]) -> tuple[Arrays, float]:
    """What a call gives, and how many seconds the second one takes."""
    run()
    start = time.perf_counter()
    return run(), time.perf_counter() - start


_SAM_NOTES = [
    "The image is encoded once; the decoder then takes any number P of prompts of n points each,",
    "one or more of both.",
    "Points are (x, y) in pixels of the image. Their labels: 1 on the object, 0 off it, 2 and 3",
    "the upper left and the lower right corner of a box, −1 no point (each prompt without a box",
    "has one), −2 absent (in prompts with fewer points than others). `masks` are logits as",
    "`low_res` has them, of an earlier prediction; `has_mask` tells for which prompts they count.",
    "Of a prompt's masks the first is for prompts that mean one thing, the others for those that",
    "can mean several. What is above 0 in `logits` belongs to the object.",
]


def _describe(
    folder: Path,
    title: str,
    files: Sequence[Path],
    tells: Mapping,
    notes: Sequence[str],
    example: Path,
    javascript: Sequence[str],
) -> None:
    """Writes `model.json`, `README.md` and `run_onnx.py`: what the files take and give, and how."""
    import onnx

    from talora_jax.inference.onnx.graph import OPSET

    signatures, lines = {}, []
    for path in files:
        graph = onnx.load(path, load_external_data=False).graph
        signatures[path.name] = {
            "inputs": [_signature(x) for x in graph.input],
            "outputs": [_signature(x) for x in graph.output],
        }
        for way, values in signatures[path.name].items():
            for x in values:
                shape = ", ".join(map(str, x["shape"]))
                lines.append(
                    f"| `{path.name}` | {way[:-1]} | `{x['name']}` | {x['dtype']} [{shape}] |"
                )
    content = {"opset": OPSET, "files": signatures, **tells}
    (folder / "model.json").write_text(json.dumps(content, indent=2) + "\n")
    command = example.read_text().partition(": ")[2].partition('"')[0]
    text = [
        f"# {title}",
        "",
        f"ONNX, opset {OPSET}, float32. Images are uint8 RGB of one size, and are resized and",
        "normalised inside.",
        "",
        "| file | | name | |",
        "|---|---|---|---|",
        *lines,
        "",
        *notes,
        "",
        "    pip install onnxruntime numpy",
        f"    {command}",
        "",
        "The same in JavaScript (npm install onnxruntime-web), for a file of bytes, three a pixel;",
        "in a browser they are what a canvas gives, without each fourth:",
        "",
        "```js",
        *javascript,
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(text))
    shutil.copyfile(example, folder / "run_onnx.py")


_JS_START = [
    'import fs from "node:fs";',
    'import * as ort from "onnxruntime-web";',
    'const { image_size } = JSON.parse(fs.readFileSync("model.json"));',
    "// RGB, one byte each, row by row.",
    "const image = new Uint8Array(fs.readFileSync(process.argv[2]));",
]
_SAM_JS = [
    *_JS_START,
    'const encoder = await ort.InferenceSession.create("encoder.onnx");',
    'const decoder = await ort.InferenceSession.create("decoder.onnx");',
    'const x = new ort.Tensor("uint8", image, [...image_size, 3]);',
    "const { embeddings } = await encoder.run({ image: x });",
    "const [, h, w] = embeddings.dims;",
    "const point = process.argv.slice(3, 5).map(Number);",
    "const { logits, low_res, iou } = await decoder.run({",
    "  embeddings,",
    '  points: new ort.Tensor("float32", [...point, 0, 0], [1, 2, 2]),',
    '  labels: new ort.Tensor("int32", [1, -1], [1, 2]),',
    '  masks: new ort.Tensor("float32", new Float32Array(16 * h * w), [1, 4 * h, 4 * w]),',
    '  has_mask: new ort.Tensor("bool", [false], [1]),',
    "});",
    "console.log(logits.dims, iou.data);",
]
_TASKS_JS = [
    *_JS_START,
    'const model = await ort.InferenceSession.create("model.onnx");',
    'const images = new ort.Tensor("uint8", image, [1, ...image_size, 3]);',
    "const arrays = await model.run({ images });",
    "for (const [name, { type, dims }] of Object.entries(arrays)) console.log(name, type, dims);",
]


def _signature(value) -> dict:
    import onnx

    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    return {"name": value.name, "dtype": str(dtype), "shape": shape}
