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
from talora_jax.data import DATASETS, class_names, forget_unread, open_dataset
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
    names = "cityscapes_mtan, folder, nyuv2_mtan, pascal_context, rooms"
    for name, expected in (
        ("room", f"did you mean 'rooms'? The data sets are {names}."),
        ("nyuv2", f"did you mean 'nyuv2_mtan'? The data sets are {names}."),
        ("xyz", f"expected one of {names}."),
    ):
        with pytest.raises(UserError) as error:
            how(ml_collections.ConfigDict({"name": name}), ("depth",))
        assert str(error.value) == f"config.data.name is {name!r}; {expected}"


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


@pytest.mark.parametrize(
    ("name", "field", "value", "told"),
    [
        ("rooms", "max_depth", 5.0, "only folder, nyuv2_mtan: leave it out, or set it to None."),
        ("rooms", "depth_scale", 1000.0, "only folder, nyuv2_mtan: leave"),
        (
            "rooms",
            "path",
            "here",
            "only cityscapes_mtan, folder, nyuv2_mtan, pascal_context: leave",
        ),
        ("folder", "train_frames", 50, "only rooms: leave it out, or set it to 1000."),
        ("rooms", "val_fraction", 0.0, "only folder: leave it out, or set it to 0.2."),
        ("folder", "seed", 3, "only rooms: leave it out, or set it to 0."),
        ("cityscapes_mtan", "depth_scale", 2.0, "only folder, nyuv2_mtan"),
        ("nyuv2_mtan", "class_names", ("a", "b"), "only folder: leave it out"),
        ("pascal_context", "intrinsics", (1.0, 1.0, 0.0, 0.0), "only folder: leave it out"),
    ],
)
def test_fields_that_a_data_set_does_not_read_are_refused(name, field, value, told):
    config = config_lib.default()
    config.data.name = name
    config.data[field] = value
    with pytest.raises(UserError) as error:
        open_dataset(config.data, ("depth",))
    message = str(error.value)
    assert message.startswith(f"config.data.{field} is {value!r}, which {name} does not read, ")
    assert told in message


@pytest.mark.parametrize("name", DATASETS)
def test_fields_are_read_where_it_is_said(name):
    package = Path(pkgutil.resolve_name(f"talora_jax.data.{name}").__file__)
    files = package.parent.glob("*.py") if package.name == "__init__.py" else [package]
    source = "".join(file.read_text() for file in files)
    if name.endswith("_mtan"):
        source += (package.parent / "mtan.py").read_text()
    for field in DATASETS[name].reads:
        assert re.search(rf"\b{field}\b", source), field
    assert set(DATASETS[name].reads) < set(config_lib.default().data)


def test_what_a_run_began_with_is_forgotten_and_no_more():
    began, config = config_lib.default(), config_lib.default()
    began.data.max_depth = config.data.max_depth = 5.0
    config.data.class_names = ("a", "b")
    assert forget_unread(config, began).data.to_dict() == {
        **config_lib.default().data.to_dict(),
        "class_names": ("a", "b"),
    }
    assert config.data.max_depth == 5.0
