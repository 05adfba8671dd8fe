"""Pictures side by side with labels. It needs Pillow alone, so that commands without a host draw with it too."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 8
SMALLEST_SIDE = 128
LARGEST_SIDE, MOST_PIXELS = 2**16 - 1, 2**28  # of a grid; no JPEG is longer, and a tensor of it has 3 GB
BACKGROUND, INK = "white", "black"


def growth(image: Image.Image, smallest: int = SMALLEST_SIDE) -> int:
    """The whole factor by which a picture is enlarged, so that its longer side has `smallest` pixels at least."""
    return max(1, -(-smallest // max(image.size)))


def enlarge(image: Image.Image, smallest: int = SMALLEST_SIDE) -> Image.Image:
    """The picture at `growth` times its size: with hard pixels where it is very tiny, smooth otherwise."""
    factor = growth(image, smallest)
    if factor == 1:
        return image
    method = Image.Resampling.NEAREST if max(image.size) <= 32 else Image.Resampling.BICUBIC
    return image.resize((image.width * factor, image.height * factor), method)


def wrap(text: str, width: int, measure) -> list[str]:
    """The lines of `text`, none wider than `width` as `measure` tells it. A word that is wider is cut into pieces."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if measure(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if line and measure(line + letter) > width:
                lines.append(line)
                line = ""
            line += letter
    return [*lines, line] if line else lines


def opaque(image: Image.Image) -> Image.Image:
    """The picture in RGB. Where it is transparent the background shows."""
    if "A" not in image.getbands():
        return image.convert("RGB")
    sheet = Image.new("RGB", image.size, BACKGROUND)
    sheet.paste(image, mask=image.getchannel("A"))
    return sheet


def check_size(width: int, height: int) -> None:
    """Raise ValueError for a grid that nobody could look at."""
    if max(width, height) > LARGEST_SIDE or width * height > MOST_PIXELS:
        raise ValueError(
            f"the grid would have {width:,} × {height:,} pixels; at most {LARGEST_SIDE:,} a side and {MOST_PIXELS:,} in "
            "all can be drawn. Use fewer columns, or fewer or smaller pictures"
        )


def grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str] = (), title: str = ""
) -> Image.Image:
    """One picture in RGB of all `rows`, each a label and its pictures. Labels stand left of the rows and above the columns,
    in space as large as they need. Raises ValueError where the whole is too large."""
    count = max([len(columns), *(len(images) for _, images in rows)])
    cells = [image for _, images in rows for image in images]
    cell_width = max((image.width * growth(image) for image in cells), default=SMALLEST_SIDE)
    tallest = (max((image.height * growth(image) for image in images), default=0) for _, images in rows)
    check_size(count * (cell_width + GAP), sum(tallest) + GAP * len(rows))  # before anything is made for it
    rows = [(label, [enlarge(opaque(image)) for image in images]) for label, images in rows]
    # Pillow before 10.1 has one small default font and no size for it.
    sized = "size" in inspect.signature(ImageFont.load_default).parameters
    font = ImageFont.load_default(size=max(14, cell_width // 14)) if sized else ImageFont.load_default()
    line_height = int(font.getbbox("Ågjy")[3]) + 2

    label_width = max(cell_width // 2, SMALLEST_SIDE)
    labels = [wrap(label, label_width, font.getlength) for label, _ in rows]
    titles = [wrap(title, cell_width, font.getlength) for title in columns]
    label_width = int(max([-GAP, *(font.getlength(line) + 1 for lines in labels for line in lines)]))
    title_height = line_height * max((len(lines) for lines in titles), default=0)
    heights = [
        max([line_height * len(lines), *(image.height for image in images)])
        for lines, (_, images) in zip(labels, rows, strict=True)
    ]

    left = GAP + label_width + GAP
    width = left + count * (cell_width + GAP)
    headline = wrap(title, width - 2 * GAP, font.getlength)
    above = GAP + (len(headline) * line_height + GAP if headline else 0)
    top = above + (title_height + GAP if titles else 0)
    height = top + sum(heights) + GAP * len(rows)
    check_size(width, height)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)

    def write(lines: list[str], x: int, y: int, width: int) -> None:
        for number, line in enumerate(lines):
            indent = (width - font.getlength(line)) // 2
            draw.text((x + indent, y + number * line_height), line, fill=INK, font=font)

    write(headline, GAP, GAP, width - 2 * GAP)
    for column, lines in enumerate(titles):
        write(lines, left + column * (cell_width + GAP), above, cell_width)
    y = top
    for lines, (_, images), height in zip(labels, rows, heights, strict=True):
        write(lines, GAP, y + (height - line_height * len(lines)) // 2, label_width)
        for column, image in enumerate(images):
            x = left + column * (cell_width + GAP) + (cell_width - image.width) // 2
            sheet.paste(image, (x, y + (height - image.height) // 2))
        y += height + GAP
    return sheet


def stacked(pictures: Sequence[Image.Image], background: str) -> Image.Image:
    """One picture in RGB of several, one below the other. Raises ValueError where the whole is too large."""
    size = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    check_size(*size)
    sheet, y = Image.new("RGB", size, background), 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet
