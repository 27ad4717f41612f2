"""Videos in, videos of panels out."""

import json
import shutil
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

import talora_jax
from talora_jax.errors import UserError
from talora_jax.inference import video
from talora_jax.inference.pictures import picture
from talora_jax.inference.to_files import find_images, predict

GRAYS = range(40, 240, 20)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten gray frames of 48×64, twelve and a half a second."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25, 2))
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for gray in GRAYS:
            frame = np.full((48, 64, 3), gray, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames(clip):
    found = video.Video(clip)
    frames, times = zip(*found.frames(), strict=True)
    assert (found.rate, found.count, len(frames)) == (Fraction(25, 2), 10, 10)
    assert [time * found.time_base for time in times] == [Fraction(2, 25) * i for i in range(10)]
    assert {(x.shape, x.dtype.name) for x in frames} == {((48, 64, 3), "uint8")}
    np.testing.assert_allclose([x.mean() for x in frames], GRAYS, atol=3)


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    # Of odd sides, and the second higher than the first.
    pictures = [np.full((height, 51, 3), 90, np.uint8) for height in (33, 45)]
    timed = [video.Frame(x, i) for i, x in enumerate(pictures)]
    assert video.write(path, iter(timed), Fraction(5), Fraction(1, 5)) == 2
    frames = [x.picture for x in video.Video(path).frames()]
    assert len(frames) == 2 and frames[0].shape[1] == 52
    for frame, height in zip(frames, (33, 45), strict=True):
        np.testing.assert_allclose(frame[: height - 2, :49].mean(), 90, atol=4)
        np.testing.assert_allclose(frame[height + 2 :].mean(), 255, atol=4)

    def fails():
        yield timed[0]
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        video.write(tmp_path / "half.mp4", fails(), Fraction(5), Fraction(1, 5))
    (tmp_path / "new" / "panels").touch()
    with pytest.raises(UserError, match="panels could not be made: File exists"):
        video.write(tmp_path / "new" / "panels" / "clip.mp4", fails(), Fraction(5), Fraction(1, 5))
    assert [x.name for x in tmp_path.iterdir()] == ["new"]


def test_times_are_kept_where_the_rate_varies(tmp_path):
    milliseconds = [1400, 1500, 1600, 2400, 2900, 3400, 5400, 6400]  # as of a part of a longer one
    rate, unit = Fraction(10), Fraction(1, 1000)
    with av.open(str(tmp_path / "given.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.codec_context.time_base = 48, 64, unit
        for time in milliseconds:
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = time, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    given = video.Video(tmp_path / "given.mkv")
    path = tmp_path / "written.mp4"
    assert video.write(path, given.frames(), given.rate, given.time_base) == 8
    written = video.Video(path)
    for clip in given, written:
        times = [frame.time * clip.time_base for frame in clip.frames()]
        assert times == [(x - 1400) * unit for x in milliseconds]
    with av.open(str(path)) as container:
        assert container.duration == 5_100_000  # microseconds, the last frame's among them
    nanosecond = Fraction(1, 10**9)
    timed = [video.Frame(np.zeros((48, 64, 3), np.uint8), n * 10**9) for n in (0, 7)]
    assert video.write(path, timed, rate, nanosecond) == 2
    written = video.Video(path)
    assert [frame.time * written.time_base for frame in written.frames()] == [0, 7]


def test_frames_that_tell_no_time_are_shown_at_the_rate(tmp_path):
    with av.open(str(tmp_path / "stream.mpg"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = 48, 64
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    found = video.Video(tmp_path / "stream.mpg")
    times = [frame.time * found.time_base for frame in found.frames()]
    assert times == [Fraction(i, 25) for i in range(4)]


@pytest.mark.parametrize("what", ["short", "empty", "text", "gone"])
def test_what_is_no_video_is_told_in_a_sentence(clip, tmp_path, what):
    path = tmp_path / "bad.mp4"
    content = {"short": clip.read_bytes()[:700], "empty": b"", "text": b"no video\n" * 99}
    if what in content:
        path.write_bytes(content[what])
    with pytest.raises(UserError, match=r"bad\.mp4: not a video that can be read") as told:
        list(video.Video(path).frames())
    assert len(str(told.value).splitlines()) == 1


def test_a_video_beside_a_photo(clip, shelf, tmp_path):
    model = talora_jax.load(shelf / "adapter.safetensors", base=shelf / "sam_nano.safetensors")
    bad = tmp_path / "bad.mkv"
    bad.write_bytes(b"")
    photo = shutil.copy(shelf / "photo.jpg", tmp_path)
    inputs, lines = find_images([str(clip), str(bad), photo], tmp_path), []
    out = tmp_path / "out"
    summary = predict(model, inputs, out, tasks=["depth"], batch_size=4, print_line=lines.append)

    told, image = summary["images"]
    assert told["frames_per_second"] > 0 and image["image"] == photo
    expected = {"image": str(clip), "frames": 10, "files": ["panels/clip.mp4"]}
    assert told == expected | {"frames_per_second": told["frames_per_second"]}
    assert [row["image"] for row in summary["unreadable"]] == [str(bad)]
    assert f"{clip}: 10 frames, " in lines[-2] and "2 of 3 images and videos" in lines[-1]
    assert f"; depth and panels are in {out}" in lines[-1]
    assert {str(x.relative_to(out)) for x in out.rglob("*.*")} == {
        *("summary.json", "depth/photo.png", "panels/photo.png", "panels/clip.mp4")
    }
    panels = video.Video(out / "panels" / "clip.mp4")
    assert panels.rate == Fraction(25, 2)
    seen, times = zip(*panels.frames(), strict=True)
    assert [time * panels.time_base for time in times] == [Fraction(2, 25) * i for i in range(10)]
    frame = list(video.Video(clip).frames())[7].picture
    panel = np.asarray(picture(frame, model.predict(frame, ["depth"]), model.tasks), int)
    height, width = panel.shape[:2]
    assert abs(seen[7][:height, :width] - panel).mean() < 4
    with pytest.raises(UserError, match=r"summary\.json exists .* --overwrite"):
        predict(model, inputs[:1], out, tasks=["depth"])


def test_a_video_that_is_damaged_is_read_up_to_there(clip, shelf, tmp_path):
    damaged, photo = tmp_path / "damaged.mp4", shutil.copy(shelf / "photo.jpg", tmp_path)
    with av.open(str(clip)) as container:
        packets = [(x.pos, x.size) for x in container.demux(video=0) if x.size]
    content = bytearray(clip.read_bytes())
    for start, size in packets[6:]:
        content[start : start + size] = bytes(size)
    damaged.write_bytes(content)
    model = talora_jax.load(shelf / "adapter.safetensors", base=shelf / "sam_nano.safetensors")
    out, lines = tmp_path / "out", []
    how = {"tasks": ["depth"], "batch_size": 4, "print_line": lines.append, "overwrite": True}
    summary = predict(model, find_images([str(damaged), photo], out), out, **how)

    row = summary["images"][0]
    reason = f"cannot be read beyond frame {row['frames']} (Invalid data found"
    assert 0 < row["frames"] < 10 and row["ends_early"].startswith(reason)
    assert summary["unreadable"] == [{"image": str(damaged), "reason": row["ends_early"]}]
    assert lines[0].startswith(f"not read: {damaged}: {reason}")
    panels = out / "panels" / "damaged.mp4"
    assert len(list(video.Video(panels).frames())) == row["frames"]
    panels.unlink()
    # Where it is all there is, it is an error, too.
    with pytest.raises(UserError, match=r"damaged\.mp4: cannot be read beyond frame"):
        predict(model, find_images([str(damaged)], out), out, **how)
    assert len(list(video.Video(panels).frames())) == row["frames"]
    assert len(json.loads((out / "summary.json").read_text())["images"]) == 1


def test_without_pyav_a_sentence_says_what_to_install(clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"clip.mp4 is a video, .* 'talora_jax\[video\]'"):
        video.check_installed(clip)
