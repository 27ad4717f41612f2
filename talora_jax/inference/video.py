"""Video files: frames in, pictures out, by PyAV."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import UInt8

from talora_jax.errors import UserError, one_line, printable
from talora_jax.files import replacing

_SUFFIXES = frozenset(".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split())
# Of a file that does not tell how many frames it shows in a second.
_RATE = Fraction(25)
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


class Video:
    """A video file that can be read.

    Attributes:
      rate: frames per second.
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
                self.count = stream.frames or None
        except IndexError:
            raise UserError(f"{printable(path)}: there are no pictures in it") from None
        except Exception as error:
            raise _unreadable(path, error) from None

    def frames(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Its frames, upright, one after the other.

        Raises:
          UserError: where it cannot be read any further, and after how many, or there is none.
        """
        seen = 0
        try:
            with _av().open(str(self._path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    seen += 1
                    yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        except Exception as error:
            raise _unreadable(self._path, error, seen) from None
        if not seen:
            raise UserError(f"{printable(self._path)}: not one frame can be read")


def write(path: Path, pictures: Iterable[UInt8[np.ndarray, "H W 3"]], rate: Fraction) -> int:
    """Writes pictures as an MP4 file, whole or not at all, and returns how many there were.

    All are given one size, a little higher than the first, cut off or filled up with white.

    Raises:
      UserError: the disk refuses, or what `pictures` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with replacing(path) as temporary, _av().open(str(temporary), "w", format="mp4") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                height, width = picture.shape[0] + _ROOM, picture.shape[1]
                stream.height, stream.width = height + height % 2, width + width % 2
                stream.pix_fmt = "yuv420p"
            frame = np.full((stream.height, stream.width, 3), 255, np.uint8)
            height, width = (
                min(a, b) for a, b in zip(frame.shape, picture.shape[:2], strict=False)
            )
            frame[:height, :width] = picture[:height, :width]
            container.mux(stream.encode(_av().VideoFrame.from_ndarray(frame, format="rgb24")))
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
