"""Which runs a sweep plans, and that it survives failures and a kill."""

import importlib.util
import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from talora_jax import config as config_lib
from talora_jax.data import open_dataset
from talora_jax.data.folder import open as folder_data
from talora_jax.errors import UserError
from talora_jax.experiments import sweep as sweep_lib
from talora_jax.experiments.sweep import Grid, plan, read_command, sweep
from talora_jax.training import setup
from talora_jax.training.log import read_metrics
from talora_jax.training.loop import claim_workdir


def test_a_plan_holds_every_combination_that_differs():
    config = config_lib.default()
    runs = plan(config, Grid(("talora", "none", "stl"), (0, 1)))
    assert list(runs) == [
        *("talora-seed0", "none-seed0"),
        *("stl-semantic-seed0", "stl-depth-seed0", "stl-normals-seed0"),
        *("talora-seed1", "none-seed1"),
        *("stl-semantic-seed1", "stl-depth-seed1", "stl-normals-seed1"),
    ]
    single = runs["stl-depth-seed1"]
    assert (single.tasks, single.seed, single.adapter.kind) == (("depth",), 1, "full")
    assert single.weighting.task_weights == (1.0,)
    # All else is shared, and the config itself is left as it was.
    assert runs["none-seed0"].adapter.kind == "none"
    same = config.copy_and_resolve_references()
    same.adapter.kind = "none"
    assert runs["none-seed0"].to_dict() == same.to_dict()
    assert config.tasks == ("semantic", "depth", "normals") and config.adapter.kind == "talora"


def test_ablations_run_once_for_methods_that_do_not_read_them():
    ranks, weights = ((8, 8, 2), (8, 16, 4)), (0.0, 0.1)
    parts = (("U1", "U2", "G"), ("G",))
    grid = Grid(("talora", "lora_per_task", "full"), (), ranks, weights, parts)
    assert list(plan(config_lib.default(), grid)) == [
        *("talora-ranks8,8,2-lambda0.0-seed0",),
        *("talora-ranks8,8,2-lambda0.1-U1+U2+G-seed0", "talora-ranks8,8,2-lambda0.1-G-seed0"),
        *("talora-ranks8,16,4-lambda0.0-seed0",),
        *("talora-ranks8,16,4-lambda0.1-U1+U2+G-seed0", "talora-ranks8,16,4-lambda0.1-G-seed0"),
        "lora_per_task-rank8-seed0",
        "full-seed0",
    ]
    inits = Grid(("talora", "lora_shared"), inits=("published", "scaled"))
    assert list(plan(config_lib.default(), inits)) == [
        *("talora-published-seed0", "talora-scaled-seed0", "lora_shared-seed0"),
    ]
    with pytest.raises(UserError, match="config.adapter.ranks: p is 500"):
        plan(config_lib.default(), Grid(("talora",), ranks=((500, 8, 2),)))
    with pytest.raises(UserError, match="config.orthogonal_parts: unknown 'U3'"):
        plan(config_lib.default(), Grid(("talora",), orthogonal_parts=(("U3",),)))


def test_each_single_task_has_its_own_class_weights():
    config = config_lib.default()
    config.tasks = ("semantic", "depth", "semantic:materials", "human_parts")
    config.weighting.kind = "equal"
    config.class_weights.update(kind="given", given=((1, 2), (3, 4, 5), ()))
    runs = plan(config, Grid(("stl",)))
    assert [(run.class_weights.kind, run.class_weights.given) for run in runs.values()] == [
        ("given", (1, 2)),
        ("none", ()),
        ("given", (3, 4, 5)),
        ("none", ()),
    ]
    # One list is of all of them, as it is of one run of all tasks.
    config.class_weights.given = (1, 2)
    assert all(run.class_weights.given == (1, 2) for run in plan(config, Grid(("stl",))).values())


def test_the_command_line():
    arguments = "--config configs/rooms_tiny.py --workdir x --methods talora stl".split()
    more = "--seeds 3 4 --ranks 8,8,2 --orthogonal-parts U1,G --config.steps=7"
    config, directory, grid = read_command([*arguments, *more.split()])
    assert config.steps == 7 and config.tasks == ("semantic", "depth", "normals")
    assert directory == Path("x")
    assert grid == Grid(("talora", "stl"), (3, 4), ((8, 8, 2),), orthogonal_parts=(("U1", "G"),))
    config, _, grid = read_command([*arguments, "--config.tasks", "('depth', 'edges')"])
    assert config.tasks == ("depth", "edges") and grid == Grid(("talora", "stl"))
    for wrong, told in (
        (["--config.stepps=7"], "no field stepps; did you mean steps"),
        (["--config.steps=many"], "steps"),
        (["--config.steps", "many"], "steps"),
        (["--seed", "7"], "unexpected argument '--seed'; did you mean --seeds?"),
        (["--ranks", "8,8"], "argument --ranks: '8,8': expected three whole numbers, as 8,8,2"),
        (["--seeds", "x"], "argument --seeds: invalid int value: 'x'"),
        (["--methods", "lora"], "--methods: unknown 'lora', expected one of talora, lora_shared"),
        (["--inits", "small"], "--inits: unknown 'small', expected one of published, orthonormal"),
        (["--config.trains=prompts"], "--methods: stl is for tasks, and config.trains is prompts"),
        (["--config", "configs/none.py"], "there is no file 'configs/none.py'"),
    ):
        with pytest.raises(UserError) as error:
            read_command([*arguments, *wrong])
        assert told in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="the following arguments are required: --methods"):
        read_command(arguments[:4])


def test_finished_runs_are_skipped_and_a_failing_one_stops_nothing(
    config, tmp_path, monkeypatch, capsys
):
    runs = plan(config, Grid(("talora", "none", "full")))
    claim_workdir(runs["talora-seed0"], tmp_path / "runs" / "talora-seed0", write=True)
    (tmp_path / "runs" / "talora-seed0" / "adapter.safetensors").touch()
    begun = []

    def run(config, workdir, log):
        begun.append(workdir.name)
        log.parent.mkdir(exist_ok=True)
        log.write_text("step 1\nerror: step 2: depth/loss is nan.\n\n")
        if workdir.name.startswith("none"):
            return 2
        claim_workdir(config, workdir, write=True)
        row = {"step": config.steps, "split": "val", "depth/pooled/rmse": 1.0}
        (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return 0

    monkeypatch.setattr(sweep_lib, "_run", run)
    failed = sweep(runs, tmp_path)
    assert begun == ["none-seed0", "full-seed0"]
    assert failed == {"none-seed0": "error: step 2: depth/loss is nan."}
    told = capsys.readouterr().out
    assert "[1/3] talora-seed0: finished before" in told
    assert "[2/3] none-seed0: failed after 0 s: error: step 2" in told
    assert "| full | 1 |" in (tmp_path / "report" / "table.md").read_text()

    # Another config in the same place is told before anything runs.
    config.steps = 5
    with pytest.raises(
        UserError, match=r"talora-seed0 was written by another config: config.steps"
    ):
        sweep(plan(config, Grid(("talora",))), tmp_path)
    assert begun == ["none-seed0", "full-seed0"]


def test_a_mistyped_path_is_told_once_and_nothing_starts(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_lib, "_run", lambda config, workdir, log: pytest.fail("started"))
    for field in ("data.path", "model.weights"):
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict({field: str(tmp_path / "nowhere")})
        with pytest.raises(UserError, match="nowhere"):
            sweep(plan(wrong, Grid(("none", "full"))), tmp_path / "sweep")


def test_what_no_run_can_do_is_told_before_the_first_one(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_lib, "_run", lambda config, workdir, log: pytest.fail("started"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mlflow" else find_spec(name)
    )
    for fields, told in (
        ({"weighting.kind": "stch"}, "'stch' warms up for 4 epochs .* and the run has 4"),
        ({"weighting.kind": "dynamic_average", "batch_size": 64}, "at least one step per epoch"),
        ({"tracker": "mlflow"}, "config.tracker=mlflow needs mlflow, which is not installed"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict(fields)
        with pytest.raises(UserError, match=told):
            sweep(plan(wrong, Grid(("none", "full"))), tmp_path / "sweep")


def test_what_one_of_the_runs_cannot_do_is_told_before_the_first_one(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_lib, "_run", lambda config, workdir, log: pytest.fail("started"))
    config.weighting.kind, config.model.weights = "equal", ""
    run, adapter = setup.prepare(config), tmp_path / "adapter.safetensors"
    setup.learnt_file(run, run.trainable).write(adapter)
    of_seed = "config.seed is 1, but config.init names an adapter trained with 0"
    of_task = "config.tasks: .*adapter.safetensors has depth already"
    single = Grid(("stl",), stl_adapter="talora")
    for fields, grid, told in (
        ({"init": str(adapter)}, Grid(("talora",), (0, 1)), of_seed),
        ({"adapter.extend": str(adapter), "tasks": ("edges", "depth")}, single, of_task),
        ({"mesh.task": 3}, Grid(("none", "stl")), "names 1 tasks, not divisible by .*mesh.task=3"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict(fields)
        with pytest.raises(UserError, match=told):
            sweep(plan(wrong, grid), tmp_path / "other")


def test_the_data_is_prepared_once_for_all_runs(config, tmp_path, monkeypatch):
    config.data.dir = str(tmp_path / "records")
    prepared, prepare, begun = [], folder_data._prepare, []
    monkeypatch.setattr(
        folder_data, "_prepare", lambda *parts: prepared.append(parts) or prepare(*parts)
    )

    def run(config, workdir, log):
        begun.append(workdir.name)
        assert len(prepared) == 1
        open_dataset(config.data, tuple(config.tasks))
        return -9

    monkeypatch.setattr(sweep_lib, "_run", run)
    with pytest.raises(UserError, match="none of the 8 workdirs"):
        sweep(plan(config, Grid(("none", "stl"), (0, 1))), tmp_path / "sweep")
    assert len(begun) == 8 and len(prepared) == 1


def test_a_sweep_of_which_nothing_ends_well(config, tmp_path, monkeypatch, capsys):
    def run(config, workdir, log):
        claim_workdir(config, workdir, write=True)
        return -9

    monkeypatch.setattr(sweep_lib, "_run", run)
    # The one that is planned is the one that is there.
    with pytest.raises(UserError, match="none of the 1 workdirs holds a finished run"):
        sweep(plan(config, Grid(("none",))), tmp_path)
    assert "none-seed0: failed after 0 s: killed by signal 9" in capsys.readouterr().out


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_sweep_leaves_no_run_behind_and_goes_on(start_python, config, tmp_path):
    config.tasks, config.weighting.task_weights = ("depth",), (1.0,)
    config.adapter.kind = "none"
    config.steps, config.checkpoint_every = 12, 3
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "import json\n"
        "from talora_jax import config as config_lib\n\n\n"
        "def get_config():\n"
        "    config = config_lib.default()\n"
        f"    config.update(json.loads({json.dumps(config.to_dict())!r}))\n"
        "    return config\n"
    )
    first, second = (tmp_path / "sweep" / "runs" / f"none-seed{seed}" for seed in (0, 1))
    claim_workdir(config, first, write=True)
    row = {"step": 12, "split": "val", "depth/pooled/abs_err": 1.0, "depth/pooled/rel_err": 1.0}
    (first / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (first / "adapter.safetensors").touch()

    def start():
        command = ["--config", str(experiment), "--workdir", str(tmp_path / "sweep")]
        return start_python(
            "tests/micro_sweep.py", *command, "--methods", "none", "--seeds", "0", "1"
        )

    process = start()
    # The next checkpoint waits for this one to be whole, so the run is far from its end.
    while process.poll() is None and not (second / "checkpoints" / "3").exists():
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()
    left = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left
    until = time.monotonic() + 60
    while any(map(is_running, left)):
        assert time.monotonic() < until, "a run goes on without its sweep"
        time.sleep(0.01)
    assert not (second / "adapter.safetensors").exists()

    # Runs on the same data stand in one table.
    shutil.copy(second / "data.json", first)
    process = start()
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    assert "[1/2] none-seed0: finished before" in out and "[2/2] none-seed1: done" in out
    assert "Resuming after step" in (tmp_path / "sweep" / "logs" / "none-seed1.txt").read_text()
    rows = read_metrics(second / "metrics.jsonl")
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 13))
    table = (tmp_path / "sweep" / "report" / "table.md").read_text()
    assert "| single-task none | 2 |" in table and "Left out" not in table
    assert (tmp_path / "sweep" / "report" / "plot.png").exists()
