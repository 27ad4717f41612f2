"""Training a promptable SAM: what learns, what is left, and that it resumes exactly."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import talora_jax
from talora_jax import config as config_lib
from talora_jax import config_checks, sharding
from talora_jax.data.pipeline import train_iterator
from talora_jax.errors import UserError
from talora_jax.prompting import draw, measure
from talora_jax.training import loop
from talora_jax.training.jobs import JOBS
from talora_jax.training.log import read_metrics
from talora_jax.training.prompted import objective
from talora_jax.training.step import init_state, make_relative_updates, make_train_step
from talora_jax.weights.base_file import read_base, read_description

JOB = JOBS["prompts"]


@pytest.fixture
def prompted(config, folder):
    """Asks about the classes of the frames, as if they were objects."""
    config.trains = "prompts"
    config.adapter.kind = "full"
    config.prompts.domains = ("semantic",)
    config.prompts.masks = 2
    config.prompts.clicks = 1
    config.prompts.eval_masks = 3
    config.prompts.min_pixels = 8
    config.optimizer.kind = "adamw"
    config.optimizer.warmup = 0.0
    return config


def first_batch(run):
    config = run.config
    iterator = train_iterator(
        run.dataset.splits["train"],
        tasks=JOB.targets(config),
        image_size=run.dataset.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        num_threads=0,
        asked=JOB.asked(config, run.dataset),
    )
    return sharding.shard_batch(next(iterator), run.mesh)


def one_step(config):
    run = JOB.prepare(config)
    before = init_state(run)
    kept = jax.tree.map(np.asarray, before.trainable["model"])
    after, scalars = make_train_step(run)(before, run.frozen, first_batch(run))
    scalars |= make_relative_updates(run)(after, run.frozen)
    moved = {
        ".".join(map(str, path)): bool((variable[...] != old[...]).any())
        for (path, variable), (_, old) in zip(
            nnx.to_flat_state(after.trainable["model"]), nnx.to_flat_state(kept), strict=True
        )
    }
    return moved, {name: float(x) for name, x in scalars.items()}


@pytest.mark.slow
def test_all_of_a_sam_learns_but_the_fourier_features(prompted):
    prompted.prompts.auxiliary = ("depth", "normals")
    moved, scalars = one_step(prompted)
    assert not any("gaussian_matrix" in name for name in moved)
    still = {name for name, has in moved.items() if not has}
    # A bias on all keys changes no softmax; a mask that never was the best of three has no slope.
    best = tuple(f"hypernetworks_mlps.{i}" for i in (1, 2, 3))
    assert all("k_proj.bias" in n or any(b in n for b in best) for n in still), still
    assert {"prompts/loss", "prompts/iou_after_1_clicks", "depth/loss"} < scalars.keys()
    assert not any("adapter" in name for name in scalars)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "blocks", "clicks"),
    # One of them with the decoder of later rounds, which takes as long to compile as the first's.
    [("talora", None, 1), ("lora_shared", None, 0), ("talora", (-1,), 0)],
)
def test_adapters_learn_on_a_frozen_encoder(prompted, kind, blocks, clicks):
    prompted.adapter.kind, prompted.adapter.blocks = kind, blocks
    prompted.prompts.clicks = clicks
    moved, scalars = one_step(prompted)
    parts = {name.split(".")[1] for name in moved}
    assert parts == {"image_encoder", "mask_decoder"}
    inside = {name for name in moved if "image_encoder" in name}
    assert all("adapter" in n or "norm1" in n or "norm2" in n for n in inside) and inside
    assert all(("adapted.global_blocks" in name) == bool(blocks) for name in inside)
    assert scalars["adapter/relative_update"] > 0
    # Of 1, λ's default, times TA-LoRA's regulariser.
    assert (scalars["orthogonal"] > 0) == (kind == "talora")
    losses = [x for name, x in scalars.items() if name.startswith("prompts/loss")]
    expected = np.mean(losses) + scalars["orthogonal"]
    np.testing.assert_allclose(scalars["objective"], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_iou_head_learns_alone(prompted):
    prompted.adapter.kind, prompted.prompts.learns = "none", "iou_head"
    moved, _ = one_step(prompted)
    assert moved and all("mask_decoder.iou_prediction_head" in name for name in moved)
    assert any(moved.values())


@pytest.mark.slow
def test_the_best_of_three_masks_learns_and_token_0_always(micro_sam):
    rng = np.random.default_rng(0)
    masks = np.zeros((1, 2, 64, 64), bool)
    masks[0, 0, 8:40, 8:40] = masks[0, 1, 30:50, 10:20] = True
    asked = objective.ask(jnp.asarray(masks), jnp.array([[64, 64]]), 2)
    embeddings = jnp.asarray(rng.normal(size=(1, 8, 8, 32)), jnp.float32)
    prompts = draw.click_prompt(jnp.array([[[20.0, 20.0], [15.0, 40.0]]]))

    graphdef, tokens, rest = nnx.split(micro_sam, nnx.PathContains("mask_tokens"), ...)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope_and_losses(tokens):
        sam = nnx.merge(graphdef, tokens, rest)
        logits, _ = sam.decode(embeddings, *prompts, multimask=None)
        losses = objective.mask_loss(logits, asked.fine[:, :, None], asked.inside[:, :, None])
        return objective.first_answer(sam, embeddings, asked, prompts).loss[0, 0], losses[0, 0]

    slope, losses = slope_and_losses(tokens)
    slopes = jnp.abs(jax.tree.leaves(slope)[0]).sum(-1)
    best = 1 + int(losses[1:].argmin())
    # A token reaches the others' masks through attention alone, its own by its hypernetwork, too.
    assert {0, best} == set(np.argsort(slopes)[-2:].tolist())


def test_masks_are_as_fine_as_answers():
    masks = np.zeros((1, 1, 8, 8), bool)
    masks[0, 0, :4, :3] = True
    asked = objective.ask(jnp.asarray(masks), jnp.array([[5, 8]]), 2)
    # Of the third column of cells half is in the mask.
    np.testing.assert_array_equal(asked.fine[0, 0], np.outer([1, 1, 0, 0], [1, 1, 0, 0]))
    np.testing.assert_array_equal(asked.inside[0, 0], np.outer([1, 1, 1, 0], [1, 1, 1, 1]))
    assert asked.known.all() and asked.stride == 2


@pytest.mark.slow
def test_a_mask_that_is_not_there_changes_nothing(prompted):
    """Images with fewer masks than there is room for: what fills the room does not count."""
    run = JOB.prepare(prompted)
    batch = first_batch(run)
    asked = np.array(batch["asked"])
    asked[asked > 1] = 0
    gradient = jax.jit(objective.make_gradient(run))

    def scalars(asked, clicks=0):
        found = gradient(
            {"model": run.trainable, "weighting": {}},
            {},
            run.frozen,
            batch | {"asked": jnp.asarray(asked)},
            0,
            jax.random.key(0),
        )
        return found.scalars

    whole = scalars(asked)
    assert np.isfinite(float(whole["objective"]))
    none = scalars(np.zeros_like(asked))
    assert float(none["prompts/loss"]) == 0


@pytest.mark.slow
@pytest.mark.long
def test_a_run_leaves_a_base_that_prompts_and_resumes(prompted, tmp_path, monkeypatch, capsys):
    metrics = loop.train(prompted, tmp_path / "whole")
    names = {
        f"semantic/{p}/{a}" for p in ("box", "1_click", "5_clicks") for a in ("picked", "best")
    }
    assert names < metrics.keys() and metrics["semantic/masks"] > 0
    assert metrics["semantic/1_click/best"] >= metrics["semantic/1_click/picked"]
    out = capsys.readouterr().out
    assert "semantic/box/picked" in out and "(constant: " in out
    assert Image.open(tmp_path / "whole" / "pictures" / "val_000.png").size[0] > 3 * 64

    # Interrupted after the checkpoint of step 2, it goes on to the same end.
    step = loop.make_train_step

    def interrupted(run):
        train_step = step(run)

        def stop(state, *rest):
            if int(state.step) == 3:
                # Checkpoints are written while training goes on.
                while not (tmp_path / "broken" / "checkpoints" / "2").is_dir():
                    time.sleep(0.01)
                raise KeyboardInterrupt
            return train_step(state, *rest)

        return stop

    monkeypatch.setattr(loop, "make_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(prompted, tmp_path / "broken")
    monkeypatch.setattr(loop, "make_train_step", step)
    assert loop.train(prompted, tmp_path / "broken") == metrics
    assert "Resuming after step 2" in capsys.readouterr().out
    bases = [read_base(tmp_path / run / "base.safetensors")[0] for run in ("whole", "broken")]
    for name, x in bases[0].items():
        np.testing.assert_array_equal(bases[1][name], x, err_msg=name)
    rows = [
        [r for r in read_metrics(tmp_path / run / "metrics.jsonl") if r["split"] == "train"]
        for run in ("whole", "broken")
    ]
    drop = lambda row: {k: v for k, v in row.items() if k != "step_time"}  # noqa: E731
    assert list(map(drop, rows[0])) == list(map(drop, rows[1]))

    # The base is one like any other: it is prompted, and tasks are trained on it.
    assert read_description(tmp_path / "whole" / "base.safetensors").source["steps"] == 4
    predictor = talora_jax.SamPredictor(talora_jax.load_sam(tmp_path / "whole"))
    predictor.set_image(np.zeros((48, 64, 3), np.uint8))
    assert predictor.predict(boxes=[[4, 4, 20, 20]]).masks().shape == (1, 3, 48, 64)


def test_what_is_evaluated_is_what_the_predictor_answers(prompted, tmp_path):
    """The box's picked IoU, mask by mask through the public predictor."""
    prompted.data.image_size = (48, 64)
    run = JOB.prepare(prompted)
    evaluator = JOB.evaluator(run)
    metrics = evaluator.metrics(run.trainable)
    JOB.leave(run, run.trainable, tmp_path)
    predictor = talora_jax.SamPredictor(talora_jax.load_sam(tmp_path / "base.safetensors"))
    ious = []
    source = run.dataset.splits["val"]
    for sample in (source[i] for i in range(len(source))):
        predictor.set_image(sample["image"])
        for number in np.unique(sample["semantic"]):
            mask = sample["semantic"] == number
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            found = predictor.predict(boxes=[box])
            answer = found.masks()[0, found.iou[0].argmax()]
            ious.append((answer & mask).sum() / (answer | mask).sum())
    assert len(ious) == metrics["semantic/masks"]
    np.testing.assert_allclose(metrics["semantic/box/picked"], np.mean(ious), rtol=0, atol=0.02)


@pytest.mark.parametrize(("kind", "learns"), [("lora_shared", "all"), ("none", "iou_head")])
def test_a_base_is_left_in_float32_whatever_trained_it(prompted, tmp_path, kind, learns):
    prompted.adapter.kind, prompted.prompts.learns = kind, learns
    of_base, left = read_base(prompted.model.weights)[0], {}
    for dtype in ("float32", "bfloat16"):
        prompted.model.param_dtype = dtype
        run = JOB.prepare(prompted)
        # Less than bfloat16 can add to a kernel, or to a norm's scale of 1.
        learnt = jax.tree.map(
            lambda x: x + 1e-3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), run.trainable
        )
        (tmp_path / dtype).mkdir()
        JOB.leave(run, learnt, tmp_path / dtype)
        left[dtype], _ = read_base(tmp_path / dtype / "base.safetensors")
    trained = {name for name, x in left["float32"].items() if (x != of_base[name]).any()}
    inside = ("qkv.kernel", "norm1.", "norm2.", "mask_decoder.")
    inside = inside if learns == "all" else ("mask_decoder.iou_prediction_head",)
    assert trained and all(any(part in name for part in inside) for name in trained)
    for name, x in left["bfloat16"].items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, left["float32"][name])


def test_a_base_that_has_changed_takes_nothing_in(prompted, tmp_path):
    prompted.adapter.kind, prompted.model.param_dtype = "lora_shared", "bfloat16"
    run = dataclasses.replace(JOB.prepare(prompted), fingerprint="another")
    with pytest.raises(UserError, match="has changed since this run began.*: put back what it was"):
        JOB.leave(run, run.trainable, tmp_path)
    assert not list(tmp_path.glob("base*"))


def test_the_trivial_answers_know_nothing_of_padding(prompted):
    prompted.data.image_size = (32, 64)
    run = JOB.prepare(prompted)
    discs, source = [], run.dataset.splits["val"]
    for labels in (source[i]["semantic"] for i in range(len(source))):
        for mask in (labels == number for number in np.unique(labels)):
            # The frame is as wide as the image, and twice as high.
            discs.append(measure.discs(mask, measure.centre(mask)[0], 64))
    expected = np.mean(discs, axis=0).max()
    np.testing.assert_allclose(JOB.baselines(run)["semantic/1_click/picked"], expected, rtol=1e-6)


def test_without_masks_there_is_no_iou(prompted):
    prompted.data.image_size = (48, 64)
    prompted.prompts.min_pixels = 10**4
    run = JOB.prepare(prompted)
    assert JOB.baselines(run) == {}
    assert JOB.evaluator(run).metrics(run.trainable) == {"semantic/masks": 0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trains": "prompt"}, r"config.trains: unknown 'prompt'.*; did you mean prompts\?"),
        ({"prompts.domains": ("flow",)}, "config.prompts.domains: unknown 'flow'"),
        ({"prompts.domains": ()}, "config.prompts.domains is empty"),
        ({"prompts.domains": ("part", "part")}, "names a target twice: part, part"),
        ({"prompts.auxiliary": ("instance",)}, "config.prompts.auxiliary: unknown 'instance'"),
        ({"prompts.masks": 0}, "config.prompts.masks is 0, expected at least 1"),
        ({"prompts.eval_masks": 256}, "config.prompts.eval_masks is 256, expected at most 255"),
        ({"prompts.clicks": -1}, "config.prompts.clicks is -1, expected 0 or more"),
        ({"prompts.learns": "head"}, "config.prompts.learns: unknown 'head'"),
        ({"prompts.learns": "iou_head"}, "trains no adapter; set config.adapter.kind=none"),
        (
            {"prompts.learns": "iou_head", "adapter.kind": "none", "prompts.auxiliary": ("depth",)},
            "iou_head changes no embedding; leave config.prompts.auxiliary empty",
        ),
        (
            {"adapter.extend": "run"},
            "config.adapter.extend adds tasks .*prompts has none: le",
        ),
        ({"weighting.kind": "pcgrad"}, "weighting.kind=pcgrad is of tasks, .* set it to 'fixed'"),
        ({"prompts.aspects": (2.0, 1.0)}, "config.prompts.aspects is .*, expected a lowest"),
        ({"optimizer.kind": "sgd"}, "config.optimizer.kind: unknown 'sgd'"),
    ],
)
def test_values_that_cannot_work(changes, told):
    config = config_lib.default()
    config.trains = "prompts"
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=told):
        config_checks.check(config)


def test_a_mesh_shares_out_no_tasks():
    config = config_lib.default()
    config.trains, config.tasks = "prompts", ("semantic", "depth")
    with pytest.raises(UserError, match="config.mesh.task is 2, expected 1: it shares out tasks"):
        config_checks.check_mesh(config, {"data": 2, "fsdp": 1, "task": 2})


@pytest.mark.parametrize(("kind", "told"), [("lora_shared", 1), ("full", 0)])
def test_a_frozen_encoder_of_random_numbers_is_told(prompted, kind, told):
    prompted.adapter.kind = kind
    prompted.model.weights = ""
    prompted.prompts.domains = ("instance",)
    lines = []
    with pytest.raises(UserError, match="no targets for instance"):
        JOB.prepare(prompted, lines.append)
    assert "\n".join(lines).count("the encoder is random numbers") == told


def test_a_data_set_without_these_masks_is_refused(prompted):
    prompted.prompts.domains = ("instance",)
    with pytest.raises(UserError, match="has no targets for instance; it has semantic"):
        JOB.prepare(prompted)
