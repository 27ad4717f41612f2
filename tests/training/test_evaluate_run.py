"""What an evaluation on request takes and refuses, before anything is opened."""

import json

import pytest

from talora_jax import config as config_lib
from talora_jax.command_line import override
from talora_jax.errors import UserError
from talora_jax.main import main
from talora_jax.training.evaluate_run import Whole


def test_fields_of_the_training_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_lib.default().to_dict()))
    for changes, told in (
        (
            "--config.adapter.scale=2 --config.steps=3",
            "adapter.scale (the run has 0.5), config.ste",
        ),
        ("--config.log_every=7", "evaluate cannot change config.log_every (the run has 20)"),
        ("--config.adapter.scle=2", "the config has no field scle; did you mean scale?"),
        # Data is another matter, but there is nothing to evaluate.
        ("--config.data.path=x --config.data.depth_scale=2", "holds no checkpoint to evaluate"),
    ):
        with pytest.raises(UserError) as error:
            main(["--mode=evaluate", f"--workdir={tmp_path}", *changes.split()])
        assert told in str(error.value) and len(str(error.value)) < 600


def test_unset_fields_of_a_run_can_be_set(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_lib.default().to_dict()))
    config = override(
        config_lib.read(tmp_path / "config.json"), ["--config.data.class_names=('a',)"]
    )
    assert config.data.class_names == ("a",) and config.data.path is None


def test_all_samples_of_all_splits_in_their_order():
    whole = Whole(([{"image": 1}, {"image": 2}], [], [{"image": 3}]))
    assert [whole[i]["image"] for i in range(len(whole))] == [1, 2, 3]
    with pytest.raises(IndexError):
        whole[3]
