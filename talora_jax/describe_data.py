"""Looks at a folder of data, guesses where its images and targets lie and what their numbers mean,
and says what it finds: counts, ranges, a picture of eight samples.

  talora_jax describe-data DATA
  talora_jax describe-data DATA --write
  talora_jax train --config folder_small --config.data.path=DATA --workdir /tmp/mine

The guess is a dataset.json, which --write puts into DATA: no file is moved. Where there is one
already, or a folder for each target, that is what is looked at. What dataset.json can say stands in
talora_jax/data/folder/settings.py and readings.py.
"""

import json
import os
import re
import shlex
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from talora_jax.errors import ArgumentParser, UserError, printable, run_command
from talora_jax.files import replacing, write_atomically

_PICTURES = 8
_LOOKED_AT = 64  # samples, for counts and ranges
_HERE = "DATA/dataset.json"


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    run(args.data, args.write, args.sheet, args.description)


def run(data: Path, write: str | None, sheet: Path | None, description: str | None) -> None:
    """Describes `data` on standard output.

    Args:
      write: where to write a guessed description, `_HERE` for the data's own place; None: nowhere.
      sheet: the picture to write; None: beside where one stands, called after the data.
      description: what `config.data.description` would name, to be looked at in place of a guess.

    Raises:
      UserError: there is nothing to find, or what is there cannot be read.
    """
    # Imported here: --help and a wrong argument need not wait for JAX.
    import ml_collections

    from talora_jax.data.folder.guess import guess
    from talora_jax.data.folder.listing import check_root
    from talora_jax.data.folder.look import look
    from talora_jax.inference.target_sheet import target_sheet
    from talora_jax.task_names import kind_of
    from talora_jax.tasks import TASKS

    root = Path(os.path.expanduser(data))
    check_root(root)
    said = description or (root / "dataset.json").exists() or (root / "image").is_dir()
    said = said if write in (None, _HERE) else description  # which is asked for beside another one
    place = write and (root / "dataset.json" if write == _HERE else Path(os.path.expanduser(write)))
    text, notes = None, ()
    if place and place.exists():
        raise UserError(f"{place} is there already; remove it, or give --write another name.")
    if not said:
        found = guess(root)
        text, notes = _json(found.description), found.notes
    elif write:
        raise UserError(f"{root} needs no description but the one it has: leave --write out.")
    with tempfile.TemporaryDirectory() as folder:
        if text is not None:
            description = str(Path(folder) / "dataset.json")
            Path(description).write_text(text, encoding="utf-8")
        try:
            seen = look(
                root,
                ml_collections.ConfigDict({"path": str(root), "description": description}),
                looked_at=_LOOKED_AT,
                pictures=_PICTURES,
            )
        except UserError as error:
            if text is None:
                raise
            raise UserError(f"what was guessed does not hold ({error}):\n{text}") from None
    for line in (*seen.lines, *(f"note: {note}" for note in notes)):
        print(printable(line, 600))
    if text is not None:
        print(f"\ndataset.json, as it was guessed:\n{text}")
    if seen.samples:
        sheet = sheet or Path(f"{re.sub(r'[^A-Za-z0-9._-]', '_', root.resolve().name)}_samples.png")
        with replacing(sheet) as temporary:
            target_sheet(seen.samples, seen.names, seen.class_names).save(temporary, "png")
        print(f"{len(seen.samples)} samples as pictures: {sheet}")
    elsewhere = ""
    if place:
        write_atomically(place, text.encode())
        print(f"written: {place}")
        elsewhere = (
            "" if write == _HERE else f" --config.data.description={shlex.quote(str(place))}"
        )
    tasks = ", ".join(repr(name) for name in seen.targets if kind_of(name) in TASKS)
    if tasks:
        workdir = Path("runs") / (root.resolve().name or "data")
        first = "" if said or write else "with --write, which keeps the guess, "
        comma = "," if tasks.count("'") == 2 else ""
        print(
            f"to train on it {first}then: talora_jax train --config folder_small "
            f"--config.data.path={shlex.quote(str(root))}{elsewhere} "
            f'--config.tasks="({tasks}{comma})" --workdir {shlex.quote(str(workdir))}'
        )


def _json(description) -> str:
    """JSON with what is short on one line."""
    text = json.dumps(description, indent=2, ensure_ascii=False)

    def joined(found: re.Match[str]) -> str:
        line = re.sub(r"\s*\n\s*", " ", found[0]).replace("[ ", "[").replace(" ]", "]")
        line = line.replace("{ ", "{").replace(" }", "}")
        if len(line) <= 90 or ":" in line:
            return line if len(line) <= 90 else found[0]
        indent = " " * (len(found[0].splitlines()[-1]) + 1)
        return "\n".join(textwrap.wrap(line, 96 - len(indent), subsequent_indent=indent))

    return re.sub(r"[\[{][^\[\]{}]*[\]}]", joined, text) + "\n"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__, "talora_jax describe-data")
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="the folder of the data set")
    add("--write", nargs="?", const=_HERE, metavar="FILE",
        help="writes the guess to DATA/dataset.json, or to FILE, which "
        "--config.data.description=FILE reads")  # fmt: skip
    add("--sheet", type=Path, metavar="FILE",
        help="the picture of samples (default: NAME_samples.png where you are)")  # fmt: skip
    add("--description", metavar="FILE",
        help="looks at the data as this dataset.json says, or one that comes along: cityscapes, "
        "cityscapes_7, nyud_mt")  # fmt: skip
    return parser


if __name__ == "__main__":
    run_command(main)
