"""Damage to bases and adapter files: told in one sentence, never computed with."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from talora_jax.errors import UserError
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.assemble import read_base_of
from talora_jax.weights.base_file import HEADER_KEY, Description, read_base
from talora_jax.weights.header import METADATA, TENSORS, sealed
from talora_jax.weights.state import fingerprint


@pytest.fixture(scope="module")
def base(nano_base) -> bytes:
    return nano_base.read_bytes()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    AdapterFile(
        {"no_mask_embed": np.ones((1, 32), np.float32)},
        {
            "kind": "talora",
            "ranks": [4, 4, 2],
            "scale": 0.5,
            "dropout": 0.1,
            "qkv": [True] * 3,
            "init": "scaled",
        },
        {"depth": 1},
        {},
        "a base",
        "f" * 64,
    ).write(path)
    return path.read_bytes()


def split(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: dict, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def refusal(read, path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as told:
        read(path)
    assert len(str(told.value)) < 600 and str(told.value).isprintable()
    return str(told.value)


@pytest.mark.parametrize(("kind", "read"), [("base", read_base), ("adapter", AdapterFile.read)])
def test_no_flipped_byte_goes_unnoticed(kind, read, request, tmp_path):
    content = request.getfixturevalue(kind)
    path = tmp_path / "damaged.safetensors"
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*rng.integers(0, header, 150), *rng.integers(header, len(content), 50)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        refusal(read, path, bytes(damaged))
    for length in rng.integers(0, len(content), 20):
        refusal(read, path, content[:length])


def test_a_flipped_flag_of_an_adapter_is_told(adapter, tmp_path):
    header, tensors = split(adapter)
    header["__metadata__"]["native_aspect"] = "true"
    error = refusal(AdapterFile.read, tmp_path / "x", put_together(header, tensors))
    assert "is damaged: its header is not the one that was written" in error


def test_a_changed_number_of_a_base_is_told(base, tmp_path):
    damaged = bytearray(base)
    damaged[-3] ^= 1
    error = refusal(read_base, tmp_path / "x", bytes(damaged))
    assert "is damaged: its tensors are not those that were written" in error


def test_files_of_before_there_were_checksums_are_read(base, adapter, tmp_path):
    header, tensors = split(base)
    before, description = read_base_of_bytes(base, tmp_path)
    for name in (TENSORS, METADATA):
        del header["__metadata__"][name]
    after, same = read_base_of_bytes(put_together(header, tensors), tmp_path)
    assert same == description and fingerprint(after) == fingerprint(before)
    header, tensors = split(adapter)
    del header["__metadata__"][METADATA]
    (tmp_path / "a").write_bytes(put_together(header, tensors))
    assert AdapterFile.read(tmp_path / "a").channels == {"depth": 1}


def read_base_of_bytes(content: bytes, folder):
    (folder / "b").write_bytes(content)
    return read_base(folder / "b")


def test_types_in_the_header_of_a_base(base, tmp_path):
    """Sealed anew each time: the types alone are what is wrong."""
    header, tensors = split(base)
    digest = header["__metadata__"][TENSORS]

    def refused(change) -> str:
        fields = json.loads(header["__metadata__"][HEADER_KEY])
        change(fields)
        metadata = sealed({HEADER_KEY: json.dumps(fields)}, digest)
        return refusal(
            read_base, tmp_path / "x", put_together({**header, "__metadata__": metadata}, tensors)
        )

    odd = (None, True, -1, 1.5, 2**64, 10**400, "\x1b[31m", [], {})
    fields = json.loads(header["__metadata__"][HEADER_KEY])
    for part, sizes in fields["config"].items():
        for name in sizes:
            for value in odd:
                error = refused(
                    lambda f, at=(part, name), x=value: f["config"][at[0]].update({at[1]: x})
                )
                assert f"its header is damaged: {part}.{name} is" in error
            missing = refused(lambda f, at=(part, name): f["config"][at[0]].pop(at[1]))
            assert f"its header is damaged: {part} is" in missing
    for name, values in {
        "version": (None, True, 0, "1"),
        "config": (None, 3, {}, []),
        "tasks": (3, "depth", [], [1], ["a", "a"]),
        "source": (None, "x", []),
        "native_aspect": (None, 0, "false"),
    }.items():
        for value in values:
            error = refused(lambda f, name=name, x=value: f.update({name: x}))
            assert "its header is damaged" in error
    for places in ([-1], [1, 0], [0, 0], [2], ["0"], 0):
        error = refused(lambda f, x=places: f["config"]["encoder"].update(global_blocks=x))
        assert "its header is damaged: encoder.global_blocks is" in error


def test_types_in_the_header_of_an_adapter(adapter, tmp_path):
    header, tensors = split(adapter)
    metadata = header["__metadata__"]
    for name in ("adapter", "channels", "class_names", "base", "seed", "native_aspect", "dtype"):
        for odd in (2**64, 1.5, [1], None, {"\x1b[31m": 0}):
            changed = {**metadata, name: json.dumps(odd)}
            del changed[METADATA]
            content = put_together({**header, "__metadata__": changed}, tensors)
            assert "its header is damaged" in refusal(AdapterFile.read, tmp_path / "x", content)
    for field, odd in (
        ("kind", 3),
        ("ranks", [4, 4]),
        ("ranks", [4, 4, 2**64]),
        ("scale", float("inf")),
        ("scale", "0.5"),
        ("dropout", 1),
        ("qkv", [1, 1, 1]),
        ("init", None),
        ("blocks", 3),
        ("blocks", []),
        ("blocks", [1, 2, 3]),
        ("blocks", [0.5]),
    ):
        fields = {**json.loads(metadata["adapter"]), field: odd}
        changed = {**metadata, "adapter": json.dumps(fields)}
        del changed[METADATA]
        content = put_together({**header, "__metadata__": changed}, tensors)
        error = refusal(AdapterFile.read, tmp_path / "x", content)
        assert f"adapter.{field} is" in error
    for name in ("channels", TENSORS):
        changed = {key: text for key, text in metadata.items() if key not in (name, METADATA)}
        content = put_together({**header, "__metadata__": changed}, tensors)
        assert f"{name} is missing" in refusal(AdapterFile.read, tmp_path / "x", content)


def test_sizes_that_would_never_end_are_refused_at_once(base, tmp_path):
    header, tensors = split(base)
    fields = json.loads(header["__metadata__"][HEADER_KEY])
    fields["config"]["decoder"]["depth"] = 2**64
    content = put_together({**header, "__metadata__": {HEADER_KEY: json.dumps(fields)}}, tensors)
    error = refusal(read_base, tmp_path / "x", content)
    assert "decoder.depth is 18446744073709551616, expected a whole number, 1 to 64" in error


def test_tensors_that_are_no_floating_point_numbers(tmp_path, micro):
    path = tmp_path / "x.safetensors"
    header = Description(micro, None, {}).header()
    safetensors.numpy.save_file({"a": np.zeros(3, np.int32)}, path, header)
    with pytest.raises(UserError, match="no floating-point numbers in a"):
        read_base(path)
    float8 = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    error = refusal(read_base, path, put_together({"__metadata__": header, "a": float8}, bytes(4)))
    assert "not a readable base" in error


def test_words_for_what_is_no_run_and_no_base(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sam", "architectures": ["SamModel"]}')
    convert = f"python -m weights_convert {tmp_path} base.safetensors"
    with pytest.raises(UserError, match="is a Hugging Face model and no run") as told:
        find(tmp_path)
    assert convert in str(told.value)
    with pytest.raises(UserError, match="is a folder, not a base") as told:
        read_base(tmp_path)
    assert convert in str(told.value)
    with pytest.raises(UserError, match="is a folder: expected an adapter.safetensors"):
        AdapterFile.read(tmp_path)
    with pytest.raises(UserError, match="no base at absent.*python -m weights_convert CHECKPOINT"):
        read_base("absent")
    file = AdapterFile({}, {}, {"depth": 1}, {}, "a base of mine", "f" * 64, weights="absent")
    with pytest.raises(UserError, match="trained on a base of mine.*python -m weights_convert"):
        read_base_of(file, "adapter.safetensors")
