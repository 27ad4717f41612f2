"""Which runs a report puts in one table: those on the same data, wherever it lies."""

import csv
import io
import json

import numpy as np
import pytest
import safetensors.numpy

from talora_jax import config as config_lib
from talora_jax.experiments.finished_run import read_run
from talora_jax.experiments.published import published_rows
from talora_jax.experiments.report import plot, report
from talora_jax.experiments.tables import make_tables

CLASSES = ("wall", "floor")
METRICS = {
    "semantic/miou": 0.5,
    "semantic/pixel_acc": 0.8,
    "depth/pooled/abs_err": 0.4,
    "depth/pooled/rel_err": 0.2,
    "depth/pooled/rmse": 1.0,
}


def contents(tasks, train=("a", "b", "c"), val=("d",), **changed):
    """What a run of these tasks remembers of a folder of four samples; digests by file's name."""
    folders = {"semantic": "png", "depth": "npy"}
    splits = {
        split: {
            f"{folder}/{stem}.{kind}": changed.get(f"{folder}_{stem}", f"{folder} {stem}")
            for stem in stems
            for folder, kind in {"image": "jpg", **{task: folders[task] for task in tasks}}.items()
        }
        for split, stems in (("train", train), ("val", val))
    }
    settings = {"image_size": [6, 8]}
    if "depth" in tasks:
        settings |= {"depth_scale": changed.get("scale", 1000.0)}
    return {"settings": settings, **splits}


def write(
    workdir, tasks, remembered, *, images=(3, 1), classes=CLASSES, kind="talora", seed=0, **data
):
    """A finished run as it leaves its workdir."""
    config = config_lib.default()
    config.tasks, config.adapter.kind, config.seed = tuple(tasks), kind, seed
    config.data.update({"name": "folder", "path": str(workdir.parent / "folder"), **data})
    found = {} if images is None else dict(zip(("train_images", "val_images"), images, strict=True))
    kept = {name: x for name, x in METRICS.items() if name.split("/")[0] in tasks}
    rows = [
        {"step": 0, "split": "model", "trainable_parameters": 10},
        {"step": 0, "split": "data", **found},
        {"step": 1000, "split": "val", **kept},
    ]
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if remembered is not None:
        (workdir / "data.json").write_text(json.dumps(remembered))
    if classes and "semantic" in tasks:
        names = json.dumps({"semantic": classes})
        tensors = {"x": np.zeros(1, np.float32)}
        safetensors.numpy.save_file(
            tensors, workdir / "adapter.safetensors", {"class_names": names}
        )
    return workdir


BOTH = ("semantic", "depth")


def made(paths):
    return make_tables([read_run(path) for path in paths])


@pytest.fixture
def runs(tmp_path):
    """A joint run, and a single-task run of each task on the same folder, which was moved."""
    return [
        write(tmp_path / "joint", BOTH, contents(BOTH)),
        *(
            write(tmp_path / task, (task,), contents((task,)), kind="full", path=f"/moved/{task}")
            for task in BOTH
        ),
    ]


def test_runs_on_the_same_files_are_one_table_whatever_they_learnt(runs, tmp_path, capsys):
    again = write(tmp_path / "again", BOTH, contents(BOTH), seed=1, path="/elsewhere")
    copied = write(tmp_path / "copied", BOTH, contents(BOTH), path="/elsewhere")
    (table,), left_out = report([*runs, again, copied], tmp_path / "out")
    assert table.title == "folder"
    single, joint = table.rows
    assert (single.method, single.seeds, joint.method, joint.seeds) == (
        *("single-task full", 1),
        *("talora", 2),
    )
    # Metrics are equal: the baseline was found.
    assert joint.values["Δp (%)"] == pytest.approx([0, 0])
    assert [line.endswith(f"seed as {runs[0]}") for line in left_out] == [True]
    (note,) = table.notes
    assert note.startswith(
        "measured on the 1 images of the validation split, trained on 3; 2 classes of semantic; "
        "data "
    )
    assert note in capsys.readouterr().out.replace("\n", " ")
    assert note in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("told", "fields"),
    [
        ("data=", {"remembered": contents(BOTH, depth_b="other depth")}),
        ("data=", {"remembered": contents(BOTH, image_d="other image")}),
        ("data=", {"remembered": contents(BOTH, train=("a", "b", "d"), val=("c",))}),
        ("data=", {"remembered": contents(BOTH, val=("d", "e")), "images": (3, 2)}),
        ("data=", {"remembered": contents(BOTH, val=("e",))}),
        ("data=", {"remembered": contents(BOTH, scale=5000.0)}),
        ("semantic_classes=3", {"remembered": contents(BOTH), "classes": (*CLASSES, "sky")}),
        ("folder", {"remembered": contents(BOTH), "classes": ("wall", "ceiling")}),
        ("data=", {"remembered": None}),
    ],
)
def test_other_files_splits_or_classes_are_another_table(runs, tmp_path, told, fields):
    other = write(tmp_path / "other", BOTH, **fields)
    tables = made([*runs, other])
    assert [[run.workdir for row in table.rows for run in row.runs] for table in tables] == [
        [*runs[1:], runs[0]],
        [other],
    ]
    assert told in tables[1].title


@pytest.mark.parametrize("changed", [{"image_b": "other"}, {"val": ("e",)}])
def test_single_task_runs_of_different_tasks_are_compared_by_their_images(tmp_path, changed):
    paths = [
        write(tmp_path / "semantic", ("semantic",), contents(("semantic",))),
        write(tmp_path / "depth", ("depth",), contents(("depth",))),
        write(tmp_path / "other", ("depth",), contents(("depth",), **changed)),
    ]
    tables = made(paths)
    assert [table.tasks for table in tables] == [("semantic", "depth"), ("depth",)]


def test_another_seed_or_version_of_rendered_rooms_is_another_table(tmp_path):
    version = {"settings": {"version": "1.0.0"}}
    fields = {"name": "rooms", "classes": None, "path": None}
    paths = [
        write(tmp_path / "a", BOTH, version, **fields),
        write(tmp_path / "b", BOTH, version, kind="none", **fields),
        write(tmp_path / "c", BOTH, version, **fields | {"seed": 1}, images=None),
        write(tmp_path / "d", BOTH, {"settings": {"version": "2.0.0"}}, **fields),
    ]
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["data"]["seed"] = 7
    paths.append(write(tmp_path / "e", BOTH, version, **fields))
    (tmp_path / "e" / "config.json").write_text(json.dumps(config))
    tables = made(paths)
    assert [[row.method for row in table.rows] for table in tables] == [
        *(["talora", "none"], ["talora"], ["none"]),
    ]
    assert tables[0].rows[0].seeds == 2
    assert "seed=7" in tables[2].title and "seed=0" in tables[0].title


def test_every_run_has_a_line(runs, tmp_path):
    report(runs, tmp_path / "out")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "runs.csv").read_text())))
    assert [line["workdir"] for line in lines] == [str(path) for path in (*runs[1:], runs[0])]
    first, _, last = lines
    assert (first["method"], first["tasks"], first["seed"]) == ("single-task full", "semantic", "0")
    assert first["depth/pooled/rmse"] == "" and first["step time (s)"] == ""
    assert last["tasks"] == "semantic depth" and float(last["trainable parameters"]) == 10
    assert {name: float(last[name]) for name in METRICS} == METRICS


def test_what_is_published_of_a_layout_that_comes_along(tmp_path):
    names = [f"class {i}" for i in range(40)]
    fields = {"name": "folder", "path": "x", "description": "nyud_mt"}
    path = write(tmp_path / "run", ("semantic", "edges"), None, classes=names, **fields)
    (table,) = made([path])
    assert [row.method for row in table.rows[1:]] == [
        row.method for row in published_rows("nyud_mt")
    ]
    # Matched within another distance than ours: beside, and no metric of ours.
    assert {name for name in table.metrics if "edges" in name} == {
        "edges/ods_f",
        "edges/within_0.011/ods_f",
    }


def test_what_is_published_is_drawn_and_of_as_many_classes(tmp_path):
    fields = {"name": "cityscapes_mtan", "path": None}
    paths = []
    for count in (7, 19):
        names = [f"class {i}" for i in range(count)]
        paths.append(write(tmp_path / f"{count}", ("semantic",), None, classes=names, **fields))
    tables = made(paths)
    seven, nineteen = tables
    assert [row.method for row in seven.rows[1:]] == [
        row.method for row in published_rows("cityscapes_mtan")
    ]
    assert len(nineteen.rows) == 1
    assert "what is published of other than 19 classes is left out" in nineteen.notes
    # A dotted line at each published mIoU, of which none is printed with its parameters.
    axes = plot([seven]).subfigs[0].axes[-1]
    drawn = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert drawn == pytest.approx([0.6906, 0.6893, 0.6917])
