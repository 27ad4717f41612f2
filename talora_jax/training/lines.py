"""What a run says while it works: on the terminal, and with the time in its workdir's log.txt."""

import time
from pathlib import Path

import rich.console

FILE_NAME = "log.txt"


class Lines:
    """Lines on the terminal; `log.txt` has them as well, also those of before there was a workdir.

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
        self._active = active
        self._held: list[str] = []
        self._path: Path | None = None

    def __call__(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)
        if self._active:
            self._held.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
            self._write()

    def keep(self, folder: Path, workdir: Path) -> None:
        """Goes on with the log.txt of a workdir.

        Args:
          folder: where to append to it: the workdir itself, unless that is in a bucket.
        """
        self._path, before = folder / FILE_NAME, workdir / FILE_NAME
        if folder != workdir and before.exists():
            self._path.write_bytes(before.read_bytes())
        self._write()

    def _write(self) -> None:
        if self._path is not None and self._held:
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(self._held)
            self._held.clear()
