"""Video files: frames in, pictures out, by PyAV."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from talora_jax.errors import UserError, one_line, printable
from talora_jax.files import make_folder, replacing

_SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split())
# Of a file that does not tell how many frames it shows in a second.
_RATE = Fraction(25)
# Seconds; of a finer unit MP4 holds no more than some seconds from frame to frame.
_FINEST = Fraction(1, 1_000_000)
# Pixels below the first picture, for later ones that are higher: their legends may have more lines.
_ROOM = 48


def is_video(path: Path) -> bool:
    """Whether a file is called like a video."""
    return path.suffix.lower() in _SUFFIXES


def check_installed(path: Path) -> None:
    """
    Raises:
      UserError: PyAV is missing, which reading `path` needs.
    """
    try:
        _av()
    except ImportError:
        raise UserError(
            f"{printable(path)} is a video, and reading it needs PyAV: pip install "
            "'talora_jax[video]'"
        ) from None


class Frame(NamedTuple):
    """A picture, and when it is shown: in units of `Video.time_base`, 0 for the first."""

    picture: UInt8[np.ndarray, "H W 3"]
    time: int


class Video:
    """A video file that can be read.

    Attributes:
      rate: frames per second, on average.
      time_base: the unit of frames' times, in seconds.
      count: how many frames there are, as far as the file tells.
    """

    def __init__(self, path: Path):
        """
        Raises:
          UserError: it is missing, or no video that PyAV can read.
        """
        self._path = path
        try:
            with _av().open(str(path)) as container:
                stream = container.streams.video[0]
                self.rate = stream.average_rate or _RATE
                self.time_base = stream.time_base
                self.count = stream.frames or None
        except IndexError:
            raise UserError(f"{printable(path)}: there are no pictures in it") from None
        except Exception as error:
            raise _unreadable(path, error) from None

    def frames(self) -> Iterator[Frame]:
        """Its frames, one after the other, each shown later than the one before.

        They are turned upright as the file says, by quarters. Where it says to mirror them they
        are not: of left and right mirrored, which it tells as a turn, they come out upside down.

        Raises:
          UserError: where it cannot be read any further, and after how many, or there is none.
        """
        seen, start, following, time = 0, 0, 0, -1
        interval = max(1, round(1 / (self.rate * self.time_base)))
        try:
            with _av().open(str(self._path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    # Of a bare stream, without a container, they tell none.
                    pts = following if frame.pts is None else frame.pts
                    start, following = start if seen else pts, pts + interval
                    time = max(pts - start, time + 1)
                    seen += 1
                    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    yield Frame(upright, time)
        except Exception as error:
            raise _unreadable(self._path, error, seen) from None
        if not seen:
            raise UserError(f"{printable(self._path)}: not one frame can be read")


def write(path: Path, frames: Iterable[Frame], rate: Fraction, time_base: Fraction) -> int:
    """Writes frames as an MP4 file, whole or not at all, and returns how many there were.

    All are given one size, a little higher than the first, cut off or filled up with white.

    Args:
      rate: frames per second, on average; the last is shown as long as that says.
      time_base: the unit of the frames' times, in seconds.

    Raises:
      UserError: the disk refuses, or what `frames` raises.
    """
    make_folder(path.parent)
    count = 0
    with replacing(path) as temporary, _av().open(str(temporary), "w", format="mp4") as container:
        stream = None
        for picture, time in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.codec_context.time_base = max(time_base, _FINEST)
                # Where frames refer to later ones, a file of varying rate tells a wrong length.
                stream.codec_context.max_b_frames = 0
                height, width = picture.shape[0] + _ROOM, picture.shape[1]
                stream.height, stream.width = height + height % 2, width + width % 2
                stream.pix_fmt = "yuv420p"
            frame = np.full((stream.height, stream.width, 3), 255, np.uint8)
            height, width = (
                min(a, b) for a, b in zip(frame.shape, picture.shape[:2], strict=False)
            )
            frame[:height, :width] = picture[:height, :width]
            encoded = _av().VideoFrame.from_ndarray(frame, format="rgb24")
            encoded.pts, encoded.time_base = time, time_base
            container.mux(stream.encode(encoded))
            count += 1
        container.mux(stream.encode() if stream is not None else [])
    return count


def _av() -> ModuleType:
    import av

    return av


def _unreadable(path: Path, error: Exception, seen: int = 0) -> UserError:
    # PyAV raises many kinds, from OSError to ValueError.
    reason = getattr(error, "strerror", None) or one_line(error)
    what = f"cannot be read beyond frame {seen}" if seen else "not a video that can be read"
    return UserError(f"{printable(path)}: {what} ({reason})")
