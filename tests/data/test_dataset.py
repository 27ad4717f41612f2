"""What datasets promise is what tasks declare; datasets by name."""

import inspect
import re
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from talora_jax.data import DATASETS, class_names, open_dataset
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


def test_a_farthest_depth_is_not_ignored():
    data = ml_collections.ConfigDict({"name": "rooms", "max_depth": 5.0})
    with pytest.raises(UserError, match="max_depth is 5.0, which rooms does not read; only folder"):
        open_dataset(data, ("depth",))
