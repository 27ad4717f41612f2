"""What heads of a kind can be called, and what a name says."""

import pytest

from talora_jax import config as config_lib
from talora_jax import config_checks
from talora_jax.errors import UserError
from talora_jax.experiments.improvement import delta_m
from talora_jax.task_names import check_name, from_path, in_paths, is_head, is_name, kind_of
from talora_jax.tasks import TASKS, Depth, Semantic, make_task, target_of


def test_a_head_is_of_its_kind_under_its_whole_name():
    name = "semantic:materials_2"
    assert kind_of(name) == "semantic" and is_head(name) and not is_head("semantic")
    task = make_task(name, class_names=("wood", "metal"))
    assert (type(task), task.name, task.channels) == (Semantic, name, 2)
    assert make_task("depth:second", class_names=()) == Depth("depth:second")
    assert target_of("depth:second") is target_of("depth") is Depth


@pytest.mark.parametrize(
    "name", ["semantic", "human_parts", "human_parts:left_2", "edges:occlusion"]
)
def test_names_of_files_lead_back(name):
    check_name("tasks", name, TASKS)
    assert from_path(in_paths(name)) == name and ":" not in in_paths(name)


@pytest.mark.parametrize(
    "name, told",
    [
        ("materials", "tasks: unknown 'materials', expected one of semantic, depth"),
        ("semantik:materials", "unknown 'semantik', .*; did you mean semantic?"),
        ("semantic:", "tasks: semantic: is no name of a head, expected semantic: and lower-case"),
        *((f"depth:{head}", "is no name of a head, .*as depth:second") for head in (
            "Wood", "a b", "a-b", "a/b", "..", "a:b", "_a", "a_", "a__b", "é",
            "materials_probabilities",
        )),
        (":materials", "tasks: unknown ''"),
        (3, "tasks: unknown 3"),
    ],
)  # fmt: skip
def test_what_no_task_can_be_called(name, told):
    with pytest.raises(UserError, match=told):
        check_name("tasks", name, TASKS)
    assert not is_name(str(name), TASKS)


def test_a_config_with_a_head():
    config = config_lib.default()
    config.tasks, config.weighting.kind = ("semantic", "semantic:materials"), "equal"
    config.best, config.eval_every = "semantic:materials/miou", 1
    config_checks.check(config)
    config.tasks = ("semantic:materials", "semantic:materials")
    with pytest.raises(UserError, match=r"config\.tasks names a task twice"):
        config_checks.check(config)
    config.tasks = ("semantic", "semantic:Materials")
    with pytest.raises(UserError, match=r"config\.tasks: semantic:Materials is no name of a head"):
        config_checks.check(config)


def test_improvement_is_of_each_head():
    tasks = ("semantic", "semantic:materials")
    alone = {f"{task}/miou": 0.5 for task in tasks}
    found = {"semantic/miou": 0.5, "semantic:materials/miou": 0.6}
    assert delta_m(tasks, found, alone) == pytest.approx(10)
