"""Every notebook runs from top to bottom, one after another as for a person, on a tiny model."""

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from talora_jax.data.rooms.__main__ import write_folder
from talora_jax.models.sam import SIZES, Sam
from talora_jax.training.log import read_metrics
from talora_jax.weights.base_file import Description, write_base
from talora_jax.weights.state import tensors_of
from weights_convert.__main__ import main as convert

REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
# Seconds that a notebook may take.
LIMIT = 180


def runs_notebooks(test):
    return pytest.mark.long(pytest.mark.slow(pytest.mark.process(test)))


def read(name):
    return nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)


def fill_in(notebook, field, value):
    """Gives a form's field a value, as a person does in Colab."""
    filled = 0
    for cell in notebook.cells:
        line = re.compile(rf"^{field} = .*?(?=  # @param)", re.MULTILINE)
        cell.source, count = line.subn(lambda _: f"{field} = {value!r}", cell.source)
        filled += count
    assert filled == 1, field


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all notebooks keep what they make."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def execute(place):
    """Runs a notebook with fields of its forms filled in; gives what it printed and showed."""

    def execute(name, **settings):
        notebook = read(name)
        for field, value in {"KEPT": place, **settings}.items():
            fill_in(notebook, field, str(value))
        if name == "finetune_tpu":
            # A TPU serves one process, and training is another: the notebook must not touch it.
            untouched = "import jax._src.xla_bridge as b; assert not b.backends_are_initialized()"
            notebook.cells.append(nbformat.v4.new_code_cell(untouched))
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
        }
        client = nbclient.NotebookClient(
            notebook,
            timeout=LIMIT,
            kernel_name="python3",
            resources={"metadata": {"path": str(REPOSITORY / "notebooks")}},
        )
        begun = time.monotonic()
        client.execute(env=environment)
        assert time.monotonic() - begun < LIMIT
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        text = "".join(output.get("text", "") for output in outputs)
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert not any(word in text for word in ("Traceback", "error: ", "os.fork()")), text
        return text, pictures

    return execute


@pytest.fixture(scope="module")
def converted(place, execute, fill):
    """The base that the first notebook makes, from a tiny SAM under Hugging Face's names."""
    sizes = SIZES["tiny"]()
    tensors = tensors_of(nnx.state(fill(lambda: Sam(sizes, rngs=nnx.Rngs(0)))))
    base, folder = place / "random.safetensors", place / "huggingface"
    description = Description(sizes, None, {"file": "random", "sha256": "…"})
    write_base(base, tensors, description)
    convert([str(base), str(folder)])
    told = execute("convert_and_prompt", SIZE="tiny", CHECKPOINT=folder)
    return place / "sam_tiny.safetensors", tensors, told


FLAGS = [
    "--config.model.size=tiny",
    "--config.model.remat=none",
    "--config.adapter.ranks=(4, 4, 3)",
    "--config.batch_size=2",
    "--config.eval_batch_size=2",
    "--config.steps=16",
    "--config.log_every=1",
    "--config.checkpoint_every=4",
    "--config.eval_every=0",
    "--config.num_pictures=1",
]


@pytest.fixture(scope="module")
def finetuned(place, execute, converted):
    """The workdir that the second notebook goes on with after its first run was cut off."""
    data, workdir = place / "data", place / "folder"
    write_folder(data, 6, (48, 64), seed=0)
    flags = [*FLAGS, f"--config.data.dir={place / 'records'}"]
    command = [
        *(sys.executable, "-m", "talora_jax.main"),
        *("--config", "../configs/folder_vit_b.py", f"--workdir={workdir}", *flags),
        *(f"--config.data.path={data}", f"--config.model.weights={converted[0]}"),
    ]
    cwd = REPOSITORY / "notebooks"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
    # Checkpoints are written while training goes on; the one of step 4 is whole before the next.
    while process.poll() is None and not (workdir / "checkpoints" / "4").is_dir():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "ended before it was killed"
    assert not (workdir / "adapter.safetensors").exists()
    told = execute("finetune_tpu", DATA=data, BASE=converted[0], FLAGS=shlex.join(flags))
    return workdir, told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_begin_alike(path):
    cells = read(path.stem).cells
    for cell in cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)
    first = read(NOTEBOOKS[0].stem).cells
    assert "**Runtime:**" in cells[0].source and "%pip install" in cells[1].source
    assert cells[1].source == first[1].source
    # What can be chosen is a field of a form: nothing is asked of the environment.
    assert not any("os.environ.get" in cell.source for cell in cells)
    fields = [line for cell in cells for line in cell.source.splitlines() if "# @param" in line]
    assert len(fields) >= 5
    for line in fields:
        ast.parse(line)
        json.loads(line.partition("# @param ")[2])
    assert all("%pip" not in cell.source for cell in cells[2:])


@runs_notebooks
def test_convert_and_prompt(converted):
    base, tensors, (text, pictures) = converted
    assert f"wrote {base}" in text and len(pictures) == 2
    stored = safetensors.numpy.load_file(base)
    assert stored.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(stored[name], x)


@runs_notebooks
def test_finetune_resumes_and_shows_what_was_learnt(finetuned):
    workdir, (text, pictures) = finetuned
    assert "Resuming after step" in text
    assert "semantic/miou" in text and "(constant: " in text
    # Data, losses, and a panel of the one validation picture.
    assert len(pictures) == 3
    steps = [r["step"] for r in read_metrics(workdir / "metrics.jsonl") if r["split"] == "train"]
    assert steps == list(range(1, 17))


@runs_notebooks
def test_finetune_on_nyuv2(execute, converted, published, place):
    data = published.WRITE["nyuv2_mtan"](place / "download", size=(48, 64))
    flags = [*FLAGS, "--config.steps=1", f"--config.data.dir={place / 'records'}"]
    flags.append("--config.data.image_size=(48, 64)")
    settings = {"EXPERIMENT": "nyuv2", "DATA": data, "BASE": converted[0]}
    text, pictures = execute("finetune_tpu", **settings, FLAGS=shlex.join(flags))
    assert "semantic/miou" in text and len(pictures) >= 3
    assert (place / "nyuv2" / "adapter.safetensors").is_file()


@runs_notebooks
def test_finetune_without_a_checkpoint_stands_on_the_small_sam(execute, place):
    write_folder(place / "others", 6, (48, 64), seed=0)
    flags = [*(flag for flag in FLAGS if "size=tiny" not in flag), "--config.steps=2"]
    settings = {"DATA": place / "others", "BASE": place / "none.safetensors"}
    text, pictures = execute("finetune_tpu", **settings, FLAGS=shlex.join(flags))
    assert "none.safetensors: the small SAM that comes along takes its place." in text
    assert "semantic/miou" in text and len(pictures) == 3
    assert (place / "folder_small" / "adapter.safetensors").is_file()
    assert any((place / "records").iterdir())


@runs_notebooks
def test_predict_and_export(execute, finetuned):
    text, pictures = execute("predict_and_export", WORKDIR=finetuned[0])
    assert "4 of 4 images predicted" in text
    # From the command line, from Python, from the program.
    assert len(pictures) == 3
    differences = [line.split()[-1] for line in text.splitlines() if "differ by at most" in line]
    assert len(differences) == 2 * 3 and all(float(x) < 1e-3 for x in differences)
