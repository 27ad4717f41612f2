"""What an evaluation tells of each class, and what it writes where it is asked to."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from talora_jax import config as config_lib
from talora_jax.errors import UserError
from talora_jax.metrics import sign
from talora_jax.tasks import make_task
from talora_jax.tasks.drawn_legends import WIDTH
from talora_jax.training import per_class
from talora_jax.training.findings import check_out, write_findings
from talora_jax.training.panels import panel
from talora_jax.training.scalars import logged, shown

CLASSES = ("floor", "wall", "lamp", "door")
# Truth is in rows: there is no lamp, and a door is predicted where there is none.
CONFUSION = np.array([[60, 15, 0, 0], [5, 15, 0, 5], [0, 0, 0, 0], [0, 0, 0, 0]])
ALL_FLOOR = np.array([[75, 0, 0, 0], [25, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
HALLWAY = make_task("semantic", class_names=CLASSES)


@pytest.fixture(scope="module")
def rows():
    found, constant = (
        {
            f"semantic/{name}": value
            for name, value in HALLWAY.summarise({"confusion": matrix, "unknown": 0}).items()
        }
        for matrix in (CONFUSION, ALL_FLOOR)
    )
    return per_class.class_rows(HALLWAY, CONFUSION, found, constant)


def test_classes_stand_in_their_order_with_share_and_constant(rows):
    assert rows == [
        ("floor", 0.75, 60 / 80, 75 / 100),
        ("wall", 0.25, 15 / 40, 0.0),
        ("lamp", 0.0, None, None),
        ("door", 0.0, 0.0, None),
    ]
    assert per_class.lines(HALLWAY, rows) == [
        "  semantic, by class                   pixels      IoU  constant",
        "    floor                             75.00 %   0.7500    0.7500",
        "    wall                              25.00 %   0.3750    0.0000",
        "    lamp                               0.00 %        –         –",
        "    door                               0.00 %   0.0000         –",
    ]


def test_what_is_written_is_what_was_found(rows, tmp_path):
    out = check_out(tmp_path / "new" / "found")
    panels = [np.full((4, 6, 3), i, np.uint8) for i in range(2)]
    about = {"evaluated": "validation", "step": 7, "images": 2, "metrics": {"a": 1.0}}
    write_findings(out, about, {"semantic": rows}, [(HALLWAY, CONFUSION)], panels)
    assert json.loads((out / "metrics.json").read_text()) == about
    with open(out / "per_class.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["task", "name", "share", "iou", "constant"]
    assert table[1] == ["semantic", "floor", "0.75", "0.75", "0.75"]
    assert table[3] == ["semantic", "lamp", "0.0", "", ""]
    with open(out / "confusion.csv", newline="") as file:
        head, *lines = csv.reader(file)
    assert head[1:] == [line[0] for line in lines] == list(CLASSES)
    np.testing.assert_array_equal([[int(x) for x in line[1:]] for line in lines], CONFUSION)
    assert Image.open(out / "confusion.png").width > 300
    for i, pixels in enumerate(panels):
        np.testing.assert_array_equal(Image.open(out / "pictures" / f"{i:03d}.png"), pixels)

    # A task's matrix has its name where there are two.
    two = [(HALLWAY, CONFUSION), (make_task("human_parts", class_names=()), np.eye(7, dtype=int))]
    write_findings(check_out(out / "two"), about, {}, two, [])
    names = {path.name for path in (out / "two").iterdir()}
    assert {"confusion_semantic.csv", "confusion_human_parts.png"} < names
    with pytest.raises(UserError, match="--out: .*metrics.json is a file, expected a folder"):
        check_out(out / "metrics.json")


def test_a_confusion_picture_has_parts_of_each_row():
    (axes, _) = per_class.confusion_picture("hallway", CLASSES, CONFUSION).axes
    (image,) = axes.images
    drawn = image.get_array()
    np.testing.assert_allclose(drawn[:2], CONFUSION[:2] / [[75], [25]])
    assert drawn.mask[2:].all() and not drawn.mask[:2].any()
    assert [text.get_text() for text in axes.texts] == ["80", "20", "20", "60", "20"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(CLASSES)


def test_a_panel_has_a_legend_of_what_is_true_and_what_is_predicted():
    depth = make_task("depth", class_names=())
    truth = {"semantic": np.zeros((12, 20), np.int32), "depth": np.ones((12, 20, 1), np.float32)}
    truth["semantic"][:, 10:] = -1
    maps = np.log(np.float32([0.1, 0.1, 0.1, 0.7])) * np.ones((12, 20, 1), np.float32)
    prediction = {"semantic": maps, "depth": truth["depth"]}
    drawn = panel(np.zeros((12, 20, 3), np.float32), truth, prediction, (HALLWAY, depth))
    colours = {tuple(c) for c in drawn[:, -WIDTH:].reshape(-1, 3).tolist()}
    floor, wall, _, door = HALLWAY.colours().tolist()
    assert {tuple(floor), tuple(door)} <= colours and tuple(wall) not in colours


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("semantic/miou", 1),
        ("semantic/iou/mean", 1),  # of a class that is called so
        ("normals/pooled/mean", -1),
        ("normals/per_image/within_11.25", 1),
        ("depth/pooled/rmse", -1),
        ("edges/tolerant/ods_f", 1),
        ("edges/ods_threshold", None),
        ("semantic/absent_classes", None),
        ("instance/3_clicks/picked", 1),
    ],
)
def test_which_way_a_metric_is_better(name, better):
    assert sign(name) == better


def test_the_regularisers_share_of_the_objective():
    config, share = config_lib.default(), "objective/regulariser_share"
    config.orthogonal_weight = 0.5
    values = {"depth/loss": 2.0, "orthogonal": 6.0, "objective": 5.0}
    assert logged(1, values, config)[share] == pytest.approx(0.6)
    # Of an uncertainty weighting, whose constant can be negative.
    assert logged(1, values | {"objective": 1.0}, config)[share] == pytest.approx(0.6)
    assert shown(values | {share: 0.6}) == {"depth/loss": 2.0, share: 0.6}
    assert shown(values | {share: 0.05}) == {"depth/loss": 2.0}
    config.orthogonal_weight = 0.0
    assert share not in logged(1, values, config)
    assert share not in logged(1, {"objective": 5.0}, config)
