"""Whether a step fits a device that is not here, and what takes less."""

import importlib.util
import types

import pytest
from rich.console import Console

from talora_jax import config as config_lib
from talora_jax import config_checks
from talora_jax.command_line import load_config
from talora_jax.errors import UserError
from talora_jax.experiments import accelerators, fit
from talora_jax.experiments.describe import describe
from talora_jax.models.sam import SIZES
from talora_jax.training.ahead_of_time import Memory, OutOfMemory

MEMORY = Memory(arguments=10**9, temporaries=3 * 10**9, peak=4 * 10**9, program=10**8)


@pytest.fixture
def told(micro, monkeypatch):
    """Describes a config for a device, for which nothing is compiled."""

    def told(compiled, device="t4", **fields):
        config = config_lib.default()
        config.model.size = "nano"
        config.adapter.ranks = (4, 4, 2)
        config.update_from_flattened_dict(fields)

        def compile_step(step):
            if isinstance(compiled, Exception):
                raise compiled
            return type("Compiled", (), {"memory": compiled})

        monkeypatch.setattr(accelerators, "knows_tpus", lambda: False)
        monkeypatch.setattr(fit.ahead_of_time, "compile_step", compile_step)
        console = Console(width=120, highlight=False, markup=False)
        with console.capture() as capture:
            describe(config, console, device)
        return capture.get()

    return told


def test_a_step_that_fits(told):
    text = told(MEMORY)
    assert "A step of 4 images, XLA's estimate for what this program runs on (cpu), not for" in text
    for row in ("3,000.0", "together", "4,100.0", "12,079.6"):  # three quarters of 15 GiB
        assert row in text, text
    assert "It fits t4." in text and "bfloat16" in text
    assert "pip install 'jax[tpu]' compiles for it" in " ".join(told(MEMORY, "v5e").split())


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_share_of_a_gpu_that_is_set(told, monkeypatch, name):
    monkeypatch.setenv(name, ".5")
    assert "8,053.1" in told(MEMORY)
    # The one that is set: JAX takes no other beside it.
    assert f" {name}=.95" in told(Memory(10**9, 8 * 10**9, 9 * 10**9, 0))
    for share in ("half", "0", "nan"):
        monkeypatch.setenv(name, share)
        with pytest.raises(UserError, match=f"{name} is '{share}', expected a share of a GPU's"):
            told(MEMORY)


def test_what_to_change_where_it_does_not(told):
    text = told(Memory(10**9, 13 * 10**9, 14 * 10**9, 0))
    assert "It does not fit t4. What takes less:" in text
    for part in (
        "XLA_CLIENT_MEM_FRACTION=.95",
        "--config.accumulate=4: one image at a time on each device, not 4",
        "--config.model.remat=block:",
        "--config.model.native_aspect=True: 6×8 tokens, not 8×8",
        "--config.mesh.fsdp=2",
    ):
        assert part in text, text
    assert "model.dtype=bfloat16" not in text

    # What is done already is not advised.
    text = told(
        OutOfMemory(None),
        **{
            "accumulate": 4,
            "model.remat": "block",
            "model.native_aspect": True,
            "model.dtype": "float32",
        },
    )
    assert "more" in text and "model.dtype=bfloat16" in text
    assert not any(word in text for word in ("accumulate=", "remat=", "native_aspect=", "FRACTION"))


@pytest.mark.parametrize("device", ["t4", "v5e"])
def test_auto_is_what_it_means_on_the_device(device, monkeypatch):
    monkeypatch.setattr(accelerators, "knows_tpus", lambda: True)
    found = fit.settled(config_lib.default(), device).model
    assert (found.dtype, found.param_dtype) == ("bfloat16", "bfloat16")
    assert found.remat == "block_but_attention"
    assert found.attention == {"t4": "xla", "v5e": "splash"}[device]


def test_a_step_on_images_of_any_size_cannot_be_told(told, folder):
    fields = {"data.name": "folder", "data.path": str(folder), "data.image_size": None}
    with pytest.raises(
        UserError, match="config.data.image_size is None, .* give the images' --config.data"
    ):
        told(MEMORY, **fields)
    # Beside what else is wrong.
    with pytest.raises(UserError, match="(?s)mesh.fsdp is 0.*config.data.image_size is None"):
        told(MEMORY, **fields, **{"mesh.fsdp": 0})


def test_devices_that_cannot_be(told, monkeypatch):
    with pytest.raises(UserError, match="config.mesh has 4 devices, and this program sees 1"):
        told(MEMORY, **{"mesh.data": 4})
    with pytest.raises(UserError, match="attention=splash needs a TPU"):
        told(MEMORY, **{"model.attention": "splash"})
    with pytest.raises(UserError, match="3 devices, but slices of v5e have 1, 4, 8, 16"):
        accelerators.slice_of("v5e", 3)
    assert accelerators.slice_of("v5p", 64) == "v5p:4x4x4"


def test_what_xla_says_of_a_program_that_is_too_large():
    told = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert fit.ahead_of_time._needed(told) == int(20.5 * 2**30)
    told = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (16.98G) exceeds available HBM (15.75G)."
    )
    assert fit.ahead_of_time._needed(told) == int(16.98 * 2**30)
    assert fit.ahead_of_time._needed("RESOURCE_EXHAUSTED: out of memory") is None


def test_a_tpus_memory_is_the_peak_that_xla_goes_by():
    told = types.SimpleNamespace(
        argument_size_in_bytes=100,
        output_size_in_bytes=70,
        alias_size_in_bytes=60,
        temp_size_in_bytes=500,
        peak_memory_in_bytes=400,
        generated_code_size_in_bytes=7,
    )
    assert fit.ahead_of_time._memory(told, "tpu") == Memory(100, 290, 400, 7)
    assert fit.ahead_of_time._memory(told, "cpu") == Memory(100, 500, 610, 7)


def test_advice_works_for_the_recipe_that_asks_for_it():
    config = fit.settled(load_config("nyuv2:vit_l"), "v5e")
    encoder = SIZES["vit_l"]().encoder
    mesh = {"data": 1, "fsdp": 1, "task": 1}
    lines = fit.advice(config, encoder, mesh, "v5e", fit.Fit(1, None, None))
    for line in lines[:3]:
        flag = line.partition(":")[0]
        config_checks.check(load_config("nyuv2:vit_l", [flag]))
    assert [line.partition("=")[0].rpartition(".")[2] for line in lines] == [
        "accumulate",
        "remat",
        "native_aspect",
        "fsdp",
    ]


@pytest.mark.slow
def test_the_command_compiles_for_devices_that_stand_for_others(start_main):
    process = start_main(
        "--mode=describe",
        "--config=rooms_tiny",
        "--config.model.weights=None",
        "--config.model.size=nano",
        "--config.model.remat=none",
        "--config.adapter.ranks=(4,4,2)",
        "--config.batch_size=2",
        "--config.mesh.data=2",
        "--device=h100",
    )
    out, errors = process.communicate(timeout=600)
    # Of eval_batch_size 10 as well each device has its share.
    assert process.returncode == 0, errors
    assert "Memory on each of 2 device(s)" in out and "It fits h100." in out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_command_compiles_for_a_tpu(start_main):
    process = start_main(
        "--mode=describe",
        "--config=rooms_tiny",
        "--config.model.weights=None",
        "--config.model.size=nano",
        "--config.adapter.ranks=(4,4,2)",
        "--device=v5e",
    )
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "compiled by XLA for v5e" in out and "It fits v5e." in out
