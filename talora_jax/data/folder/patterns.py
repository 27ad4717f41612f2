"""Patterns of the names of files: which file is of which sample.

    leftImg8bit/train/**/{stem}_leftImg8bit.png

`{stem}`, and any other name in braces, stands for a part of a name without a slash, the same one
wherever it occurs; `**/` for any folders. Both tell samples apart, and files belong together in
which they are equal. `*` stands for anything without a slash, and tells nothing.
"""

import dataclasses
import re
import unicodedata

from talora_jax.errors import UserError, printable

SPLIT = "{split}"
# Where a pattern has several, they count.
_FOLDERS = "folders"
_PIECES = re.compile(r"\*\*/|\*|\{[^{}]*\}|[^*{}]+|.")

Key = tuple[tuple[str, str], ...]  # names of a pattern and what stands there, in its order


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One pattern.

    Attributes:
      text: as it was written.
      regex: of paths below the data's directory, with slashes.
      names: of what tells samples apart, in the pattern's order.
    """

    text: str
    regex: re.Pattern[str]
    names: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Below which all that fits lies."""
        # Folders may be called in another way in which Unicode writes the same.
        fixed = re.split(r"[*{]|[^\x00-\x7f]", self.text, maxsplit=1)[0]
        return fixed.rpartition("/")[0]

    def match(self, path: str) -> Key | None:
        """What tells the sample that a file is of; None if the file does not fit. Unicode may write
        its path in any way."""
        found = self.regex.fullmatch(unicodedata.normalize("NFC", path))
        return found and tuple((name, found[name].rstrip("/")) for name in self.names)


def compile_pattern(text: str, where: str) -> Pattern:
    """Reads a pattern without `{split}`.

    Args:
      where: names its origin for the error.

    Raises:
      UserError: it is none.
    """
    text = unicodedata.normalize("NFC", text)
    parts = text.split("/")
    if not text or text.startswith("/") or "\\" in text or {"..", ".", ""} & set(parts):
        raise UserError(
            f"{where} is {printable(repr(text))}; expected a path below the data's directory, with "
            "slashes, as 'images/train/{stem}.png'."
        )
    names: list[str] = []
    regex = ""
    for piece in _PIECES.findall(text):
        if piece == "**/":
            if regex and not regex.endswith("/") and not regex.endswith(")"):
                raise UserError(f"{where}: '**' must stand between slashes, as 'images/**/…'.")
            count = sum(name.startswith(_FOLDERS) for name in names)
            names.append(f"{_FOLDERS}{count + 1 if count else ''}")
            regex += f"(?P<{names[-1]}>(?:[^/]+/)*)"
        elif piece == "*":
            regex += "[^/]*"
        elif name := re.fullmatch(r"\{([a-z][a-z0-9_]*)\}", piece):
            again = name[1] in names
            regex += f"(?P={name[1]})" if again else f"(?P<{name[1]}>[^/]+)"
            names += [] if again else [name[1]]
        elif piece[0] in "{}":
            raise UserError(
                f"{where} is {printable(repr(text))}; expected names in braces, as {{stem}}."
            )
        else:
            regex += re.escape(piece)
    if not names:
        raise UserError(
            f"{where} is {printable(repr(text))}, one file; expected {{stem}} or '**/' in it, "
            "which tell samples apart."
        )
    if "**" in text.replace("**/", ""):
        raise UserError(f"{where}: '**' must stand between slashes, as 'images/**/{{stem}}.png'.")
    return Pattern(text, re.compile(regex), tuple(names))
