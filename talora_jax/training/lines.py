"""What a run says while it works: on the terminal, and with the time in its workdir's log.txt."""

import time
from pathlib import Path

import rich.console

FILE_NAME = "log.txt"


class Lines:
    """Lines on the terminal; `log.txt` has them as well, also those of before it was opened.

    >>> tell = Lines(active=True)
    >>> tell("opening the data")
    opening the data

    Args:
      active: whether to tell anything: of many processes one does.

    Attributes:
      console: the terminal.
    """

    def __init__(self, *, active: bool):
        self.console = rich.console.Console(quiet=not active, highlight=False)
        self._active, self._held, self._file = active, [], None

    def __call__(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n"
        if self._file is None:
            self._held.append(line)
        else:
            self._file.write(line)
            self._file.flush()

    def open(self, folder: Path, workdir: Path) -> None:
        """Goes on with the log.txt of a workdir.

        Args:
          folder: where to append to it: the workdir itself, unless that is in a bucket.
        """
        path, before = folder / FILE_NAME, workdir / FILE_NAME
        if folder != workdir and before.exists():
            path.write_bytes(before.read_bytes())
        self._file = open(path, "a", encoding="utf-8")
        self._file.writelines(self._held)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
