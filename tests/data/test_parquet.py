"""NYUv2 and Cityscapes as the Hub's parquet files: the numbers of the same samples as npy."""

import shutil

import ml_collections
import numpy as np
import pytest

from talora_jax.data import cityscapes_mtan, class_names, open_dataset
from talora_jax.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TASKS = {
    "nyuv2_mtan": ("semantic", "depth", "normals"),
    "cityscapes_mtan": ("semantic", "disparity"),
}
COLUMNS = {"image": "image", "label": "segmentation", "depth": "depth", "normal": "normal"}


def write_tables(npy, root, files=2, part=2, place="data/{split}-{i:05}-of-{n:05}.parquet"):
    """The samples of a folder of MTAN's in the published schema: lists of lists of lists of float,
    channels first, labels of 64 bits, a column of noise; so many rows to a file's part."""
    for split in ("train", "val"):
        folders = [path for path in (npy / split).iterdir() if path.name in {*COLUMNS, "label_7"}]
        count = len(list((npy / split / "image").glob("*.npy")))
        rows = []
        for index in range(count):
            row = {"noise": np.full((1, 2, 2), index, np.float32).tolist()}
            for folder in folders:
                values = np.load(folder / f"{index}.npy")
                if values.ndim == 3:
                    values = np.moveaxis(values, -1, 0)
                row[COLUMNS[folder.name.removesuffix("_7")]] = values.tolist()
            rows.append(row)
        floats = pa.list_(pa.list_(pa.list_(pa.float32())))
        schema = pa.schema(
            [
                (name, pa.list_(pa.list_(pa.int64())) if name == "segmentation" else floats)
                for name in rows[0]
            ]
        )
        for i, numbers in enumerate(np.array_split(np.arange(count), files)):
            path = root / place.format(split=split, i=i, n=files)
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist([rows[k] for k in numbers], schema)
            pq.write_table(table, path, row_group_size=part)
    return root


@pytest.fixture(scope="module")
def copies(published, tmp_path_factory):
    """Of each data set, the folder of npy and that of parquet files."""
    root = tmp_path_factory.mktemp("parquet")
    copies = {}
    for name in TASKS:
        npy = published.WRITE[name](root / name)
        copies[name] = npy, write_tables(npy, root / f"{name}_tables")
    return copies


@pytest.fixture
def tables(copies, tmp_path):
    """NYUv2's, to be spoilt."""
    return shutil.copytree(copies["nyuv2_mtan"][1], tmp_path / "download")


def open_at(path, name, records, tasks=None, **more):
    data = {"name": name, "path": str(path), "dir": str(records), "image_size": ()} | more
    return open_dataset(ml_collections.ConfigDict(data), tasks or TASKS[name])


def refused(path, records, name="nyuv2_mtan", **how):
    with pytest.raises(UserError) as error:
        open_at(path, name, records, **how)
    assert len(str(error.value)) < 600
    return str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_those_of_npy(copies, name, tmp_path):
    npy, tables = (open_at(path, name, tmp_path) for path in copies[name])
    assert (npy.tasks, npy.image_size) == (tables.tasks, tables.image_size)
    for split, source in npy.splits.items():
        assert len(source) == len(tables.splits[split]) > 3
        for index in range(len(source)):
            expected, found = source[index], tables.splits[split][index]
            assert set(expected) == set(found)
            for target in expected:
                assert expected[target].dtype == found[target].dtype
                np.testing.assert_array_equal(expected[target], found[target])


def test_classes_of_cityscapes_are_those_of_the_copy(copies, tmp_path):
    npy, tables = copies["cityscapes_mtan"]
    for path, names in (
        (npy, cityscapes_mtan.CLASS_NAMES),
        (tables, cityscapes_mtan.CLASS_NAMES_19),
    ):
        assert open_at(path, "cityscapes_mtan", tmp_path).class_names == names
        data = ml_collections.ConfigDict({"name": "cityscapes_mtan", "path": str(path)})
        assert class_names(data, ("semantic",)) == names
    assert len(names) == 19


def test_files_by_the_names_of_folders(copies, tmp_path):
    npy, _ = copies["nyuv2_mtan"]
    root = write_tables(npy, tmp_path / "hub", place="default/{split}/000{i}.parquet", files=1)
    dataset = open_at(root, "nyuv2_mtan", tmp_path / "records", ("depth",))
    assert len(dataset.splits["train"]) == 6
    np.testing.assert_array_equal(
        dataset.splits["train"][5]["depth"], np.load(npy / "train/depth/5.npy")
    )
    assert set(dataset.contents["train"]) == {"default/train/0000.parquet"}


def test_changed_files_are_prepared_anew(tables, copies, tmp_path):
    before = open_at(tables, "nyuv2_mtan", tmp_path)
    first, second = sorted((tables / "data").glob("train*"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    after = open_at(tables, "nyuv2_mtan", tmp_path)
    assert before.contents["val"] == after.contents["val"] != after.contents["train"]
    np.testing.assert_array_equal(
        after.splits["train"][0]["depth"], before.splits["train"][3]["depth"]
    )


def test_what_is_missing(tables, tmp_path):
    files = sorted((tables / "data").glob("*"))
    files[0].unlink()
    assert "has 1 of the 2 files that train-00001-of-00002.parquet" in refused(tables, tmp_path)
    files[1].unlink()
    assert "none of 'train'; expected names that begin with train" in refused(tables, tmp_path)


def test_a_damaged_file(tables, tmp_path):
    first, *_ = sorted((tables / "data").glob("val*"))
    first.write_bytes(first.read_bytes()[:-100])
    assert f"{first} cannot be read as parquet" in refused(tables, tmp_path)


def test_the_other_data_set_and_other_columns(copies, tables, tmp_path):
    message = refused(copies["cityscapes_mtan"][1], tmp_path)
    assert "laid out as Cityscapes" in message and "config.data.name=cityscapes_mtan" in message
    for path in (tables / "data").glob("*"):
        table = pq.read_table(path).rename_columns(["noise", "label", "image", "depth", "normal"])
        pq.write_table(table, path)
    message = refused(tables, tmp_path)
    assert "and not segmentation" in message and "it has the columns depth, image" in message


@pytest.mark.parametrize(
    ("column", "make", "expected"),
    [
        ("depth", lambda x: [[r[0][:-1], *r[1:]] for r in x], "lists of several lengths"),
        ("depth", lambda x: None, "nothing, expected an array"),
        ("segmentation", lambda x: [[99 for _ in r] for r in x], "label 99, expected 0 to 12"),
        ("image", lambda x: [[[2.0 for _ in r] for r in c] for c in x], "expected float in [0, 1]"),
    ],
)
def test_cells_that_are_something_else(tables, tmp_path, column, make, expected):
    path = sorted((tables / "data").glob("val*"))[1]
    table = pq.read_table(path)
    rows = table.column(column).to_pylist()
    rows[1] = [make(rows[1])[0]] if column == "depth" and make(rows[1]) else make(rows[1])
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, column, pa.array(rows, table.schema.field(at).type)), path)
    message = refused(tables, tmp_path)
    assert f"{path}, row 1, column {column}: " in message and expected in message


def test_without_pyarrow_a_sentence(tables, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert "pip install 'talora_jax[parquet]'" in refused(tables, tmp_path)
