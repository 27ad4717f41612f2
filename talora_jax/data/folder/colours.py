"""Tables of classes and their colours, as data sets bring them along in a text file."""

import re
from pathlib import Path

from talora_jax.errors import UserError, printable

Colour = tuple[int, int, int]

_MOST_BYTES = 1_000_000


def read_table(path: Path) -> dict[str, tuple[Colour, ...]]:
    """The colours of each class, in the order of the file: in each line a name and three numbers
    from 0 to 255, in any order and between any separators, as `road,128,64,128` of a CSV or
    `64 128 64 Animal`. A line without three numbers, such as the title, is passed over.

    Raises:
      UserError: there is no such file, or no colour in it, or a colour stands there twice.
    """
    try:
        if not path.is_file():  # Reading a pipe would wait for ever.
            raise UserError(
                f"{printable(path)}: there is no such file, expected colours of classes."
            )
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{printable(path)}: too large for a table of colours.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{printable(path)} cannot be read as a table of colours ({reason})."
        ) from None
    table: dict[str, tuple[Colour, ...]] = {}
    for line in lines:
        if row := _row(line):
            name, colour = row
            if any(colour in colours for colours in table.values()):
                raise UserError(f"{printable(path)}: colour {colour} stands there twice.")
            table[name] = (*table.get(name, ()), colour)
    if not table:
        raise UserError(
            f"{printable(path)}: no line has a name and the three numbers of a colour, from 0 to "
            "255, such as 'road,128,64,128'."
        )
    return table


def _row(line: str) -> tuple[str, Colour] | None:
    fields = [field for field in re.split(r"[,;:\s()\[\]\"']+", line.strip("# ")) if field]
    numbers = [field for field in fields if re.fullmatch(r"\d{1,3}", field)]
    name = " ".join(field for field in fields if not field.isdecimal())
    # A number before the three is the class's index.
    values = [int(number) for number in numbers][-3:]
    if len(values) < 3 or not name or not name.isprintable() or max(values) > 255:
        return None
    return name, (values[0], values[1], values[2])
