"""What datasets promise is what tasks declare; datasets by name."""

import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from talora_jax import config as config_lib
from talora_jax.data import DATASETS, class_names, fields_read, open_dataset
from talora_jax.data.dataset import Source, check_tasks
from talora_jax.errors import UserError
from talora_jax.tasks import TARGETS


def test_the_table_of_sources_is_what_tasks_declare():
    doc = inspect.getdoc(Source)
    rows = re.findall(r"^    (\w+) +(\w+) +\[H, W(?:, (\d))?\]", doc, re.MULTILINE)
    table = {name: (dtype, (int(c),) if c else ()) for name, dtype, c in rows}
    assert table.pop("image") == ("uint8", (3,))
    assert table == {
        name: (np.dtype(task.target_dtype).name, task.target_shape)
        for name, task in TARGETS.items()
    }


def test_tasks_that_a_dataset_lacks_are_named():
    check_tasks("shapes", ("depth", "edges"), ("edges",))
    with pytest.raises(UserError, match="'shapes' has no targets for normals; it has depth, edges"):
        check_tasks("shapes", ("depth", "edges"), ("normals", "edges"))
    with pytest.raises(UserError, match="it has none of any task, images alone"):
        check_tasks("shapes", (), ("normals",))


@pytest.mark.parametrize("how", [open_dataset, class_names])
def test_an_unknown_name_and_what_may_have_been_meant(how):
    names = "cityscapes_mtan, folder, mix, nyuv2_mtan, pascal_context, rooms"
    for name, near in (
        ("room", "; did you mean rooms?"),
        ("nyuv2", "; did you mean nyuv2_mtan?"),
        ("xyz", ""),
    ):
        with pytest.raises(UserError) as error:
            how(ml_collections.ConfigDict({"name": name}), ("depth",))
        told = f"config.data.name: unknown {name!r}, expected one of {names}{near}"
        assert str(error.value) == told


@pytest.mark.parametrize("name", DATASETS)
def test_every_line_of_the_registry_leads_somewhere(name):
    data = ml_collections.ConfigDict({"name": name, "path": "", "image_size": (), "seed": -1})
    data.update(train_frames=0, val_frames=0, val_fraction=0.5, dir="")
    with pytest.raises(UserError, match="config.data"):
        open_dataset(data, ())
    assert all(isinstance(known, str) for known in class_names(data, ("depth",)))


@pytest.mark.process
def test_only_the_dataset_that_is_opened_is_imported():
    script = """
import sys, ml_collections
from talora_jax.data import class_names
assert len(class_names(ml_collections.ConfigDict({"name": "rooms"}), ("semantic",))) == 13
heavy = ("tensorflow_datasets", "scipy.io", "talora_jax.data.rooms", "talora_jax.data.folder")
sys.exit(", ".join(name for name in heavy if name in sys.modules) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DATASETS)
def test_fields_are_read_where_it_is_said(name):
    package = Path(pkgutil.resolve_name(f"talora_jax.data.{name}").__file__)
    files = package.parent.glob("*.py") if package.name == "__init__.py" else [package]
    source = "".join(file.read_text() for file in files)
    if name.endswith("_mtan"):
        source += (package.parent / "mtan.py").read_text()
    for field in set(fields_read(name)) - {"name"}:
        assert re.search(rf"\b{field}\b", source), field
    assert set(fields_read(name)) < set(config_lib.default().data)
