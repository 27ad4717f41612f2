"""The peers do the same work as ours, and every benchmark runs."""

import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import arguments, harness, ours
from benchmarks.harness import Contender
from benchmarks.report import compare
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import trainable
from talora_jax.training.setup import make_model
from talora_jax.weights.build import build, for_msam
from weights_convert.official import from_official

pytestmark = pytest.mark.torch

# Wider than high, so that there is padding; 80 / 16 = 5 tokens do not fill windows of 7.
IMAGE_SIZE, ORIGINAL = 80, (22, 30)
PACKAGES = ("segment_anything", "transformers")
# `transformers`' names of what is in the encoder, by `segment_anything`'s.
RENAMED = {
    "image_encoder.blocks.": "image_encoder.encoder.layers.",
    "image_encoder.": "image_encoder.encoder.",
    "patch_embed.proj": "patch_embed.projection",
    ".norm": ".layer_norm",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
}


@pytest.fixture(scope="module")
def architecture():
    return ours.describe("tiny", IMAGE_SIZE)[1]


@pytest.fixture(scope="module")
def peers(architecture):
    """mSAM on either encoder, with one set of random weights and without dropout."""
    import torch

    from benchmarks import pytorch_peers

    torch.manual_seed(0)
    first, second = (pytorch_peers.MSam(architecture, package) for package in PACKAGES)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.1)
            elif "td_G" in name:
                # ΔW of the size of W: a softmax near its corners would blur the gradient.
                parameter.normal_(std=2e-3)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    second.load_state_dict(
        {_transformers_name(name): x for name, x in first.state_dict().items()}, strict=False
    )
    for model in (first, second):
        for qkv in model.qkvs:
            qkv.dropout.p = 0.0
    return dict(zip(PACKAGES, (first, second), strict=True))


def _transformers_name(name):
    if name.startswith("image_encoder."):
        for theirs, other in RENAMED.items():
            if not (theirs == "image_encoder." and name.startswith("image_encoder.encoder.")):
                name = name.replace(theirs, other, 1)
    return name


@pytest.fixture(scope="module")
def model(architecture, peers):
    """Ours with the same weights."""
    sam = ours.sam_config(architecture)
    return build(lambda: make_model(make_config(), ours.make_tasks(), sam), tensors(peers))


def make_config():
    config = ours.make_config(ORIGINAL, native_aspect=False)
    config.adapter.dropout = 0.0
    return config


def tensors(peers, of=lambda parameter: parameter.detach()):
    """`segment_anything`'s tensors by our names; gradients that there are not are zero."""
    peer = peers["segment_anything"]
    official = {name: x.numpy() for name, x in peer.state_dict().items()}
    official |= {name: of(x).numpy() for name, x in peer.named_parameters()}
    heads = ours.sam_config(ours.describe("tiny", IMAGE_SIZE)[1]).decoder.heads
    return from_official(official, ours.TASKS, heads)[0]


def to_torch(batch):
    import torch

    batch = {name: torch.from_numpy(x.copy()) for name, x in batch.items()}
    return {name: x.long() if name == "semantic" else x.movedim(-1, 1) for name, x in batch.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_peers_give_the_same_maps_as_ours(peers, model, package):
    import torch

    image = ours.random_image(ORIGINAL)
    graphdef, state = nnx.split(model)
    maps = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, jnp.asarray(image))
    with torch.no_grad():
        theirs = peers[package].eval()(to_torch({"image": image})["image"])
    for task in ours.TASKS:
        assert np.std(maps[task]) > 0.01
        np.testing.assert_allclose(
            maps[task], theirs[task].movedim(1, -1), rtol=0, atol=1e-4, err_msg=task
        )


@pytest.fixture(scope="module")
def objective_and_gradient(model):
    """Ours: the objective of the train step, and its gradient."""
    config, tasks = make_config(), ours.make_tasks()
    batch = {name: jnp.asarray(x) for name, x in ours.random_batch(ORIGINAL).items()}
    graphdef, learnt, frozen = nnx.split(model, trainable(AdapterConfig.of(config.adapter)), ...)
    weights = np.array(config.weighting.task_weights) / sum(config.weighting.task_weights)

    @jax.jit
    @jax.value_and_grad
    def objective(learnt):
        model = nnx.merge(graphdef, learnt, frozen)
        maps = model(batch["image"])
        sums = [task.loss(maps[task.name], batch[task.name]) for task in tasks]
        losses = jnp.stack([total / count for total, count in sums])
        return weights @ losses + config.orthogonal_weight * model.orthogonality()

    return objective(learnt)


def named(state):
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state)}


def gradient_of(peer, by_task):
    from benchmarks import pytorch_peers

    peer.train().zero_grad(set_to_none=True)
    return pytorch_peers.backward(peer, to_torch(ours.random_batch(ORIGINAL)), by_task=by_task)


@pytest.mark.parametrize("by_task", [False, True])
def test_peers_have_the_gradient_of_our_objective(peers, model, objective_and_gradient, by_task):
    import torch

    objective, gradient = objective_and_gradient
    value = gradient_of(peers["segment_anything"], by_task)
    np.testing.assert_allclose(value, objective, rtol=1e-5)

    zeros = torch.zeros_like
    grads = tensors(peers, lambda p: zeros(p) if p.grad is None else p.grad)
    theirs = for_msam(grads, model)
    for name, mine in named(gradient).items():
        # A bias on every key shifts all logits alike: the gradient is zero but for rounding.
        tolerance = 1e-8 if name.endswith("k_proj.bias") else 1e-4 * np.abs(theirs[name]).max()
        np.testing.assert_allclose(mine, theirs[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("by_task", [False, True])
def test_peers_have_one_gradient(peers, by_task):
    values = [gradient_of(peers[package], by_task) for package in PACKAGES]
    np.testing.assert_allclose(*values, rtol=1e-5)
    first, second = (
        {name: p.grad for name, p in peers[package].named_parameters() if p.grad is not None}
        for package in PACKAGES
    )
    assert {_transformers_name(name) for name in first} == set(second)
    for name, gradient in first.items():
        theirs, scale = second[_transformers_name(name)], gradient.abs().max()
        assert (gradient - theirs).abs().max() <= max(1e-4 * scale, 1e-8), name


def test_peers_train_the_same_parameters(peers, objective_and_gradient):
    _, gradient = objective_and_gradient
    count = sum(x.size for x in jax.tree.leaves(gradient))
    for peer in peers.values():
        assert sum(p.numel() for p in peer.parameters() if p.requires_grad) == count


def test_a_step_of_the_peer_lowers_the_objective(architecture):
    from benchmarks import pytorch_peers

    batch = to_torch(ours.random_batch(ORIGINAL))
    step = pytorch_peers.train_step(pytorch_peers.MSam(architecture), batch, by_task=True)
    values = [step() for _ in range(5)]
    assert values[-1] < values[0]


SMALL = ("--size", "tiny", "--image-size", "64", "--repeats", "2")
COMMANDS = {
    "encoder": SMALL,
    "joint_forward": SMALL,
    "train_step": (*SMALL, "--variants", "--peers", "transformers_by_task", "segment_anything"),
    # In float64 no logit of these masks is nearer to the threshold than 7e-5. With 4 x 4 points one
    # is at 4e-6, and float32 decides it otherwise from processor to processor.
    "automatic_masks": ("--points-per-side", "2", "--repeats", "2", "--float64"),
    "adapters": ("--count", "tiny", "--kinds", "talora", *SMALL),
    "input": (
        *("--image-size", "64", "--repeats", "2", "--original", "48", "64", "--frames", "2"),
        *("--batches", "2", "--steps", "2", "--batch-size", "1", "--threads", "0", "2"),
    ),
}


class Here(harness.Served):
    """A contender that is no process: most of a small one's time is its imports."""

    def close(self):
        pass


@pytest.mark.parametrize("name", COMMANDS)
def test_benchmarks_run(name, tmp_path, capsys, monkeypatch):
    path = tmp_path / "result.json"
    if name != "encoder":
        monkeypatch.setattr(harness, "Worker", Here)
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.main([*COMMANDS[name], "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(path.read_text())
    for row in report["contenders"]:
        assert row["error"] is None
        assert row["name"] in printed
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert 0 < row["rss_after_setup"] <= row["peak_rss"]
    ours_and_others = [(row["ours"], row["other"]) for row in report["ratios"]]
    assert len(set(ours_and_others)) == len(ours_and_others)
    assert report["machine"]["cores"] >= 1 and "jax" in report["versions"]
    for row in report["ratios"]:
        assert row["time"] > 0 and row["peak_rss"] > 0
    if name == "adapters":
        assert report["flops"][0]["adapters_percent"] > 0
    elif name == "automatic_masks":
        same = report["same"]
        assert same["ours"] == same["theirs"] == same["equal"] > 0 == same["boxes"]
        assert report["float64"] == {"ours": same, "segment_anything": same}
    elif name == "input":
        assert len(report["training"]["waiting"]) == 2
    else:
        assert len(report["ratios"]) >= 2


def test_jobs_of_a_gpu_run_in_bfloat16(tmp_path, capsys, monkeypatch):
    from benchmarks import gpu

    monkeypatch.setattr(harness, "Worker", Here)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which the command sets, and this takes back
    jobs = ("encoder", "joint_forward")
    options = ("--platform", "cpu", "--peers", "transformers", *SMALL[:-1], "1")
    assert gpu.main([*options, "--jobs", *jobs, "--json", str(tmp_path / "of.json")]) == 0
    printed = capsys.readouterr().out
    for job in jobs:
        report = json.loads((tmp_path / f"of_{job}.json").read_text())
        assert gpu.JOBS[job] in printed and report["work"]["dtype"] == "bfloat16"
        names = [row["name"] for row in report["contenders"]]
        assert names == ["ours, xla", "transformers"]
        assert all(len(row["seconds"]) == 1 and not row["error"] for row in report["contenders"])
        # Rounding to eight bits is seen, and no more than that.
        differences = report["attention"]["xla"]
        assert 1e-4 < differences["output"] < 0.02 and 1e-4 < differences["gradients"] < 0.05
    with pytest.raises(SystemExit, match="JAX finds no GPU, but cpu: pip install"):
        gpu.main([])


def test_a_peer_trains_in_bfloat16(architecture):
    import torch

    from benchmarks import pytorch_peers

    package = "transformers"
    step, facts = pytorch_peers.training(architecture, ORIGINAL, package, True, dtype="bfloat16")
    assert step() is None and facts["trained"] > 0
    model = pytorch_peers.MSam(architecture, package)
    model.store(torch.bfloat16, all_parameters=False)
    stored = {parameter.dtype: parameter.requires_grad for parameter in model.parameters()}
    assert stored == {torch.float32: True, torch.bfloat16: False}


def test_memory_of_a_device_stands_in_place_of_the_processes(capsys):
    args = arguments.parser("").parse_args([])
    args.repeats = 1
    results = [
        harness.Result(name, name == "ours", {}, 1.0, 1.0, [seconds], 9, 9, 9, size * 2**30)
        for name, seconds, size in (("ours", 1.0, 1), ("theirs", 2.0, 4))
    ]
    assert compare("memory", args, [], {}, measure=lambda *_: results) == 0
    printed = capsys.readouterr().out
    assert "GiB in use on the device" in printed and "steps" not in printed
    assert re.search(r"ours ÷ theirs │ 0.50 │ .* │ +0.25 │", printed)


def test_counts_alone_need_no_turns(tmp_path):
    from benchmarks import adapters

    path = tmp_path / "counts.json"
    assert adapters.main(["--count", "tiny", "--repeats", "0", "--json", str(path)]) == 0
    assert {row["kind"] for row in json.loads(path.read_text())["flops"]} == set(adapters.KINDS)


def test_a_contender_that_fails_leaves_the_others_and_the_exit_code_tells(capfd):
    args = arguments.parser("").parse_args([])
    args.repeats = 1
    architecture = ours.describe("tiny", 64)[1]
    works = Contender("good", "benchmarks.ours:encoder", {"architecture": architecture})
    fails = Contender("bad", "benchmarks.ours:encoder", {}, ours=True)
    assert compare("failure", args, [fails, works], {}) == 1
    assert "bad: ended with exit code 1" in capfd.readouterr().out


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    found = arguments.importlib.util.find_spec
    monkeypatch.setattr(
        arguments.importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    with pytest.raises(SystemExit, match=r"need torch: pip install 'talora_jax\[torch\]'"):
        arguments.check_peers(["transformers"])
    arguments.check_peers([])


@pytest.mark.parametrize("size", ["100", "48"])
def test_an_image_size_that_cannot_be(size):
    from benchmarks import encoder

    with pytest.raises(SystemExit, match="multiple of 16"):
        encoder.main(["--size", "tiny", "--image-size", size, "--peers"])
