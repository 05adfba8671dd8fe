"""Pictures side by side with labels. It needs Pillow alone, so that commands without a host draw with it too."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 8
SMALLEST_SIDE = 128
BACKGROUND, INK = "white", "black"


def enlarge(image: Image.Image, smallest: int = SMALLEST_SIDE) -> Image.Image:
    """Tiny pictures grow by a whole factor: to hard pixels when very tiny, smoothly otherwise."""
    factor = -(-smallest // max(image.size))
    if factor <= 1:
        return image
    method = Image.Resampling.NEAREST if max(image.size) <= 32 else Image.Resampling.BICUBIC
    return image.resize((image.width * factor, image.height * factor), method)


def wrap(text: str, width: int, measure) -> list[str]:
    """Lines no wider than width; a single word that is too wide is cut into pieces."""
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


def grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str] = (), title: str = ""
) -> Image.Image:
    """Labels stand left of the rows and above the columns, in space that is made as large as they need."""
    rows = [(label, [enlarge(image.convert("RGB")) for image in images]) for label, images in rows]
    count = max([len(columns), *(len(images) for _, images in rows)])
    cells = [image for _, images in rows for image in images]
    cell_width = max((image.width for image in cells), default=SMALLEST_SIDE)
    # Pillow before 10.1 has one small default font and no size for it.
    sized = "size" in inspect.signature(ImageFont.load_default).parameters
    font = ImageFont.load_default(size=max(14, cell_width // 14)) if sized else ImageFont.load_default()
    line_height = font.getbbox("Ågjy")[3] + 2

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
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * len(rows)), BACKGROUND)
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
