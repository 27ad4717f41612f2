"""What answers score that never look is measured once for the same data, tasks and code."""

import dataclasses

import jax
import pytest

from talora_jax import compiled
from talora_jax import config as config_lib
from talora_jax.data.memory import SETTINGS
from talora_jax.models.sam import SIZES
from talora_jax.tasks import make_task
from talora_jax.training import baselines, code, setup
from talora_jax.training.loop import train


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The folder of what commands keep, as they begin."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    compiled.keep_programs()
    return tmp_path / "cache" / "talora_jax" / "baselines"


@pytest.fixture
def run(linear, config):
    return setup.prepare(config)


@pytest.fixture
def measurings():
    """`measurings(run)` is what `measured` gives; `measurings.told` are the lines before it."""

    class Measurings:
        told = 0

        def __call__(self, run):
            self.told = 0

            def tell(line):
                self.told += 1

            return baselines.measured(run, lambda run: {"depth/abs_err": 0.1, "x": 3.0}, tell)

    return Measurings()


def changed(run, **fields):
    config = config_lib.from_fields(run.config.to_dict())
    config.update_from_flattened_dict(fields)
    return dataclasses.replace(run, config=config)


def test_it_is_measured_once(kept, run, measurings):
    for told in (1, 0, 0):
        assert measurings(run) == {"depth/abs_err": 0.1, "x": 3.0}
        assert measurings.told == told
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:9])
    for told in (1, 0):
        assert measurings(run) == {"depth/abs_err": 0.1, "x": 3.0}
        assert measurings.told == told


@pytest.mark.parametrize("content", ["{}", '{"x": 3.0}', '{"x": "3"}', "null", "\n{}", "cut"])
def test_a_damaged_file_is_measured_anew(kept, run, measurings, content):
    measurings(run)
    (file,) = kept.iterdir()
    damaged = file.read_text().replace('"depth/abs_err": 0.1, ', "")
    assert damaged != file.read_text()
    file.write_text(damaged if content == "cut" else content)
    for told in (1, 0):
        assert measurings(run) == {"depth/abs_err": 0.1, "x": 3.0}
        assert measurings.told == told


def test_another_training_is_on_the_same_data(kept, run, measurings):
    measurings(run)
    other = changed(
        run,
        **{
            "seed": 7,
            "steps": 9,
            "batch_size": 2,
            "adapter.kind": "lora_shared",
            "optimizer.learning_rate": 1.0,
            "weighting.kind": "cagrad",
            "augment.flip": False,
            "read_threads": 1,
        },
    )
    measurings(other)
    assert measurings.told == 0


def test_other_data_tasks_and_code_are_not_the_same(kept, run, measurings, monkeypatch):
    measurings(run)
    dataset = run.dataset
    split, files = next((s, f) for s, f in dataset.contents.items() if s != SETTINGS)
    file = next(iter(files))
    others = [
        dataclasses.replace(dataset, contents=dataset.contents | {split: files | {file: "other"}}),
        dataclasses.replace(dataset, class_names=("red", "green", "black")),
        dataclasses.replace(dataset, image_size=(12, 16)),
        dataclasses.replace(dataset, splits=dataset.splits | {"val": range(3)}),
    ]
    runs = [dataclasses.replace(run, dataset=other) for other in others]
    runs += [
        changed(run, **fields)
        for fields in (
            {"eval_batch_size": 2},
            {"host_metrics": False},
            {"data.max_depth": 3.0},
            {"trains": "prompts"},
        )
    ]
    depth = make_task("depth", class_names=())
    runs.append(dataclasses.replace(run, tasks=(depth,)))
    for other in runs:
        measurings(other)
        assert measurings.told == 1
    assert len([*kept.iterdir()]) == 1 + len(runs)
    monkeypatch.setattr(baselines, "digest_of", lambda: "edited")
    measurings(run)
    assert measurings.told == 1


def test_another_base_at_the_same_path_is_not_the_same(kept, run, measurings, monkeypatch):
    measurings(run)
    monkeypatch.setattr(baselines, "sizes", lambda config: SIZES["tiny"]())
    for told in (1, 0):
        measurings(run)
        assert measurings.told == told


def test_the_code_is_all_modules(monkeypatch, tmp_path):
    package = tmp_path / "talora_jax"
    (package / "tasks").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(code.talora_jax, "__file__", str(package / "__init__.py"))
    seen = {code.digest_of.__wrapped__()}
    (package / "tasks" / "depth.py").write_text("1")
    seen.add(code.digest_of.__wrapped__())
    (package / "tasks" / "depth.py").write_text("2")
    seen.add(code.digest_of.__wrapped__())
    (package / "tasks" / "depth.py").rename(package / "depth.py")
    seen.add(code.digest_of.__wrapped__())
    assert len(seen) == 4


def test_what_cannot_be_told_apart_is_measured_anew(kept, run, measurings):
    class Mine(type(run.tasks[0])):
        pass

    mine = Mine(**{f.name: getattr(run.tasks[0], f.name) for f in dataclasses.fields(Mine)})
    for other in (
        dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, contents={})),
        dataclasses.replace(run, tasks=(mine, *run.tasks[1:])),
    ):
        for _ in range(2):
            measurings(other)
            assert measurings.told == 1
    assert not kept.exists()


def test_nothing_is_kept_where_programs_are_not(kept, run, measurings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        measurings(run)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        measurings(run)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not kept.exists()


def test_a_place_that_cannot_be_written_is_no_failure(kept, run, measurings):
    kept.touch()
    for _ in range(2):
        assert measurings(run)
        assert measurings.told == 1


def test_of_many_processes_the_first_says_what_is_kept(kept, run, measurings, monkeypatch):
    measurings(run)
    firsts = iter([None, {"x": 1.0}])
    monkeypatch.setattr(baselines.hosts, "gathered", lambda ours: [next(firsts), ours])
    assert measurings(run)["x"] == 3.0 and measurings.told == 1  # it has none
    assert measurings(run) == {"x": 1.0} and measurings.told == 0


def test_a_second_run_has_them_from_the_first(kept, linear, config, tmp_path, capsys):
    said = []
    for name in ("one", "two"):
        train(config, tmp_path / name)
        said.append(capsys.readouterr().out)
    assert ["answers score that never look" in text for text in said] == [True, False]
    logged = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    lines = [[x for x in text.splitlines() if "val_constant" in x] for text in logged]
    assert len(lines[0]) == 1 and lines[0] == lines[1]
