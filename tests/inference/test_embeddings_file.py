"""Files of embeddings: what is read is what was written, and damage is told."""

import json

import numpy as np
import pytest
import safetensors.numpy

from talora_jax.errors import UserError
from talora_jax.inference.embeddings_file import HEADER_KEY, EmbeddingsFile
from talora_jax.weights.header import sealed, tensors_sha256


@pytest.fixture
def path(micro, tmp_path):
    path = tmp_path / "images.safetensors"
    rng = np.random.default_rng(0)
    embeddings = [rng.normal(size=(8, 8, 32)).astype(np.float32) for _ in range(11)]
    EmbeddingsFile(embeddings, [(n + 1, 64) for n in range(11)], micro, False, "f" * 64).write(path)
    return path


def refusal(path):
    with pytest.raises(UserError) as error:
        EmbeddingsFile.read(path)
    assert len(str(error.value)) < 600 and str(error.value).isprintable()
    return str(error.value)


def rewrite(path, **changes):
    """The file with other fields, its checksums right."""
    with safetensors.safe_open(path, "np") as file:
        fields = json.loads(file.metadata()[HEADER_KEY])
    tensors = safetensors.numpy.load_file(path)
    metadata = sealed({HEADER_KEY: json.dumps(fields | changes)}, tensors_sha256(tensors))
    safetensors.numpy.save_file(tensors, path, metadata)


def test_images_stay_in_their_order(path):
    file = EmbeddingsFile.read(path)
    assert file.originals == [(n + 1, 64) for n in range(11)]
    first = np.random.default_rng(0).normal(size=(8, 8, 32)).astype(np.float32)
    np.testing.assert_array_equal(file.embeddings[0], first)
    file.write(path)
    again = EmbeddingsFile.read(path)
    for one, other in zip(file.embeddings, again.embeddings, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="could not be written: No such file"):
        file.write(path.parent / "nowhere" / "images.safetensors")


def test_no_flipped_byte_goes_unnoticed(path):
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for place in [*rng.integers(0, header, 100), *rng.integers(header, len(content), 20)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        refusal(path)
    for length in rng.integers(0, len(content), 10):
        path.write_bytes(content[:length])
        refusal(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"version": 2}, "embeddings of version 2, but this talora_jax reads up to 1: update it"),
        ({"version": "1"}, "version is '1', expected a number from 1"),
        ({"sam": {}}, "encoder is None"),
        ({"native_aspect": 0}, "native_aspect is 0, expected true or false"),
        ({"encoder_fingerprint": None}, "encoder_fingerprint is None"),
        ({"originals": []}, "originals is"),
        ({"originals": [[1, 64]] * 12}, "tensors is .* expected one for each image"),
        ({"originals": [[0, 64]] * 11}, "originals is"),
        ({"originals": [[1.5, 64]] * 11}, "originals is"),
        ({"originals": [[16, 64]] * 11, "native_aspect": True}, r"embedding.0 is .* \(2, 8, 32\)"),
    ],
)
def test_fields_that_do_not_fit(path, changes, what):
    rewrite(path, **changes)
    with pytest.raises(UserError, match=what):
        EmbeddingsFile.read(path)


def test_other_files_are_told(path, nano_base, tmp_path):
    assert "holds no embeddings of talora_jax; predictor.save" in refusal(nano_base)
    assert "there is no file at" in refusal(tmp_path / "missing")
    assert "there is a folder at" in refusal(tmp_path)
    path.write_bytes(b"JPEG")
    assert "is cut short or no file of embeddings" in refusal(path)
