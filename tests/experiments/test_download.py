"""Published data from the Hub: whole, resumed, and what is told where that cannot be."""

import os

import pytest

from talora_jax.errors import UserError
from talora_jax.experiments.download import PUBLISHED, download, main

FILES = {
    "data/train-00000-of-00002.parquet": bytes(range(256)) * 40,
    "data/train-00001-of-00002.parquet": b"PAR1 second",
    "data/validation-00000-of-00001.parquet": b"PAR1 third",
}


COMMIT = "c" * 40  # of the server


@pytest.fixture
def stocked(hub):
    """The Hub with NYUv2's repository, of three small files and two that are not wanted."""
    for file, content in {**FILES, "README.md": b"a card", "run.py": b"import os"}.items():
        hub.files[f"tanganke/nyuv2/{file}"] = content
    return hub


def held(directory):
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in paths
        if ".cache" not in path.parts
    }


def test_the_parquet_files_and_no_others_come_and_the_next_command_is_told(
    stocked, tmp_path, capsys
):
    main(["nyuv2", str(tmp_path / "nyuv2")])
    assert held(tmp_path / "nyuv2") == FILES
    told = capsys.readouterr().out
    assert f"{tmp_path / 'nyuv2'} holds 3 files of 0.0 GB, as on the Hub. Next:" in told
    assert f"talora_jax train --config nyuv2:vit_b --config.data.path={tmp_path / 'nyuv2'} " in told
    # Once more: nothing is loaded again.
    stocked.asked.clear()
    assert [path.name for path in download("nyuv2", tmp_path / "nyuv2")] == [
        file.rpartition("/")[2] for file in FILES
    ]
    assert not any(line.startswith("GET /datasets/") for line in stocked.asked)


def test_a_broken_line_costs_what_had_not_come(stocked, tmp_path, monkeypatch):
    # Of a try that broke the library keeps whole chunks.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    first, second, third = FILES
    stocked.cut[f"tanganke/nyuv2/{first}"] = [5000]
    download("nyuv2", tmp_path / "once")
    assert held(tmp_path / "once") == FILES
    assert [part.partition("-")[0] for part in stocked.ranges] == ["bytes=5000"]

    stocked.cut[f"tanganke/nyuv2/{second}"] = [4] * 20
    with pytest.raises(UserError, match="tanganke/nyuv2"):
        download("nyuv2", tmp_path / "twice")
    assert held(tmp_path / "twice") == {first: FILES[first]}
    stocked.cut.clear()
    stocked.asked.clear()
    download("nyuv2", tmp_path / "twice")
    assert held(tmp_path / "twice") == FILES
    loaded = [line.partition(COMMIT)[2] for line in stocked.asked if "GET /datasets" in line]
    assert loaded == [f"/{second}", f"/{third}"]


def test_a_file_that_is_not_the_hubs_is_removed_and_loaded_again(stocked, tmp_path):
    (path, *_) = download("nyuv2", tmp_path)
    spoilt = bytearray(path.read_bytes())
    spoilt[100] ^= 1
    path.write_bytes(spoilt)
    # As the library takes it: unchanged since it was loaded.
    old = path.stat().st_mtime - 1000
    os.utime(path, (old, old))
    with pytest.raises(UserError, match="was not what the Hub has .* and is removed; the same"):
        download("nyuv2", tmp_path)
    assert not path.exists()
    download("nyuv2", tmp_path)
    assert held(tmp_path) == FILES


def test_what_cannot_be_loaded_is_a_sentence(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    for name, published in PUBLISHED.items():
        with pytest.raises(UserError, match=f"the Hub shows no {published.repository}"):
            download(name, tmp_path)
    hub.files["tanganke/cityscapes/README.md"] = b""
    with pytest.raises(UserError, match="tanganke/cityscapes on the Hub holds no parquet files"):
        download("cityscapes", tmp_path)
    with pytest.raises(UserError, match="name: unknown 'kitti', expected one of nyuv2"):
        main(["kitti", "x"])
    (tmp_path / "file").touch()
    hub.files["tanganke/cityscapes/a.parquet"] = b"PAR1"
    with pytest.raises(UserError, match="file: File exists"):
        download("cityscapes", tmp_path / "file")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the Hub cannot be reached for tanganke/cityscapes"):
        download("cityscapes", tmp_path)
