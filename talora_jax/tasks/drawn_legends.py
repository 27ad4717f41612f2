"""Legends as pictures."""

import functools

from PIL import Image, ImageDraw, ImageFont

from talora_jax.tasks.legends import Bar, Key, Legend, Swatches

WIDTH, LINE = 360, 18  # pixels, of a legend and of a line of its text
_FONT_SIZE, _GAP = 13, 12


def drawn_legend(legend: Legend | None) -> Image.Image:
    """A legend, `WIDTH` pixels wide."""
    match legend:
        case None:
            return Image.new("RGB", (WIDTH, 1), "white")
        case Swatches():
            return _swatches(legend)
        case Bar():
            return _bar(legend)
        case Key():
            return _key(legend)


def _swatches(legend: Swatches) -> Image.Image:
    entries = legend.entries
    widths = [int(font().getlength(entry)) + 2 * LINE for entry in entries]
    # As in text: entries follow each other, and a line that is full is followed by another.
    places, x, y = [], 0, _GAP // 2
    for width in widths:
        if x and x + width > WIDTH:
            x, y = 0, y + LINE
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (WIDTH, y + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for (x, y), entry, colour in zip(places, entries, legend.colours, strict=True):
        box = (x, y + 2, x + _FONT_SIZE, y + 2 + _FONT_SIZE)
        draw.rectangle(box, fill=tuple(map(int, colour)), outline="black")
        draw.text((x + LINE, y), entry, fill="black", font=font())
    return canvas


def _bar(legend: Bar) -> Image.Image:
    canvas = Image.new("RGB", (WIDTH, 2 * LINE + _GAP), "white")
    strip = Image.fromarray(legend.colours[None]).resize((WIDTH, _FONT_SIZE))
    canvas.paste(strip, (0, _GAP // 2))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, _GAP // 2, WIDTH - 1, _GAP // 2 + _FONT_SIZE), outline="black")
    middle = (legend.low + legend.high) / 2
    for value, at, anchor in (
        (legend.low, 0, "la"),
        (middle, WIDTH // 2, "ma"),
        (legend.high, WIDTH - 1, "ra"),
    ):
        text = f"{value:.3g} {legend.unit}".strip()
        draw.text((at, _GAP // 2 + LINE), text, fill="black", font=font(), anchor=anchor)
    return canvas


def _key(legend: Key) -> Image.Image:
    height = max(legend.picture.shape[0], len(legend.lines) * LINE) + _GAP
    canvas = Image.new("RGB", (WIDTH, height), "white")
    canvas.paste(Image.fromarray(legend.picture), (0, _GAP // 2))
    text = "\n".join(legend.lines)
    position = (legend.picture.shape[1] + _GAP, _GAP // 2)
    ImageDraw.Draw(canvas).multiline_text(position, text, fill="black", font=font())
    return canvas


@functools.cache  # it is decoded anew whenever it is loaded, and has its glyphs to draw again
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """That of all text in pictures."""
    return ImageFont.load_default(_FONT_SIZE)
