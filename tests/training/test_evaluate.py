"""Metrics over a split, also those that are made on the host, by one process or two."""

import json
import socket

import jax
import numpy as np
import pytest

from talora_jax.errors import UserError
from talora_jax.training.evaluate import Evaluator, constant_baselines
from talora_jax.training.setup import prepare

EXACT = {"edges/ods_f", "edges/ods_threshold", "edges/ois_f"}

# Prints the metrics of an untrained model and of constants.
PROGRAM = """
import json, sys
import jax
from talora_jax import config as config_lib
from talora_jax.training import setup
from talora_jax.training.evaluate import Evaluator, constant_baselines
from tests.kills import make_linear

setup.make_model = make_linear
config = config_lib.default()
config.update(json.loads(sys.argv[1]))
run = setup.prepare(config)
with jax.set_mesh(run.mesh):
    print(json.dumps([Evaluator(run).metrics(run.trainable), constant_baselines(run)]))
"""


@pytest.fixture
def edges_config(config, linear):
    config.tasks = ("edges", "semantic")
    config.weighting.task_weights = (1.0, 1.0)
    return config


@pytest.mark.slow
def test_host_metrics_are_measured_unless_switched_off(edges_config):
    run = prepare(edges_config)
    actual = Evaluator(run).metrics(run.trainable)
    assert EXACT < actual.keys()

    # The constant's, one image after the other and without the evaluator.
    task, train, val = run.tasks[0], run.dataset.splits["train"], run.dataset.splits["val"]
    edges = np.stack([train[i]["edges"] for i in range(len(train))])
    constant = task.constant(task.statistics(edges))
    host_inputs = jax.jit(task.host_inputs)
    totals = {}
    for i in range(len(val)):
        target = val[i]["edges"][None]
        maps = np.full_like(target, constant)
        inputs = jax.device_get(host_inputs(maps, target))
        sums = {**task.metrics(maps, target), **task.host_metrics(inputs)}
        totals = {key: totals.get(key, 0) + np.asarray(value) for key, value in sums.items()}
    baselines = constant_baselines(run)
    for name, value in task.summarise(totals).items():
        np.testing.assert_allclose(baselines[f"edges/{name}"], value, rtol=1e-6, err_msg=name)

    edges_config.host_metrics = False
    without = Evaluator(run).metrics(run.trainable)
    assert without == {name: value for name, value in actual.items() if name not in EXACT}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(edges_config, start_python):
    run = prepare(edges_config)
    expected = [Evaluator(run).metrics(run.trainable), constant_baselines(run)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        edges_config.hosts.coordinator = f"localhost:{free.getsockname()[1]}"
    edges_config.hosts.num_processes = 2
    edges_config.mesh.task = 2  # both have the same rows, and one counts them
    processes = []
    for i in range(2):
        edges_config.hosts.process_id = i
        processes.append(start_python("-c", PROGRAM, json.dumps(edges_config.to_dict())))
    try:
        for process in processes:
            out, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            for actual, value in zip(json.loads(out.splitlines()[-1]), expected, strict=True):
                assert actual == pytest.approx(value, rel=1e-5)
    finally:
        for process in processes:
            process.kill()


def test_a_label_without_a_class_is_told_before_training(edges_config):
    run = prepare(edges_config)
    sample = dict(run.dataset.splits["train"][0])
    sample["semantic"] = sample["semantic"] + 3
    run.dataset.splits["train"] = [sample] * 3
    with pytest.raises(UserError, match="semantic: .* expected 0 to 2, or -1 for no label"):
        constant_baselines(run)
