"""The demo's pictures: two jittered digits on a textured ground, "red seven blue two", drawn from numbers alone.

    python dev.py benchmark digits sheet.png            # what they look like

    Digits("generator").picture(5)    uint8 [128, 128, 3]
    Digits("generator").label(5)      (colour, digit, colour, digit), left first
    Digits("generator").prompt(5)     "red seven blue two"

A picture depends on (seed, split, index) and on nothing else. Every number in it is a hash of these, so it can be drawn
again alone and in any order. The splits are disjoint: each has a range of hashes of its own, and each picture has its
own handwriting, never used again.

Licence: CC0. No file, font or data set of anyone is used: the digits are the ten lines of points below, our own.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE = 128
COLOURS = {
    "red": (0.92, 0.16, 0.14),
    "green": (0.16, 0.78, 0.24),
    "blue": (0.22, 0.40, 1.00),
    "yellow": (0.96, 0.86, 0.18),
    "white": (0.97, 0.97, 0.97),
}
COLOUR_NAMES = list(COLOURS)
DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
Label = tuple[int, int, int, int]  # colour, digit of the left half; colour, digit of the right half

# One stroke each, in a box of 1 x 1, y downwards. Nine is six upside down.
SIX = ((0.76, 0.02), (0.46, 0.1), (0.22, 0.32), (0.12, 0.64), (0.18, 0.88), (0.43, 1.0), (0.7, 0.97), (0.88, 0.78))
SIX += ((0.82, 0.55), (0.56, 0.45), (0.3, 0.5), (0.13, 0.68))
STROKES = (
    tuple((0.5 + 0.38 * np.sin(a), 0.5 - 0.5 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 13)),
    ((0.28, 0.24), (0.56, 0.0), (0.56, 1.0)),
    ((0.12, 0.3), (0.18, 0.1), (0.4, 0.0), (0.65, 0.02), (0.84, 0.18), (0.82, 0.38), (0.62, 0.6))
    + ((0.12, 1.0), (0.92, 1.0)),
    ((0.12, 0.12), (0.34, 0.0), (0.62, 0.01), (0.82, 0.14), (0.82, 0.34), (0.64, 0.46), (0.38, 0.48), (0.66, 0.51))
    + ((0.88, 0.66), (0.87, 0.85), (0.64, 0.99), (0.34, 1.0), (0.1, 0.88)),
    ((0.68, 1.0), (0.68, 0.0), (0.06, 0.68), (0.96, 0.68)),
    ((0.86, 0.0), (0.22, 0.0), (0.17, 0.45), (0.46, 0.37), (0.74, 0.43), (0.89, 0.64), (0.82, 0.87), (0.55, 1.0))
    + ((0.3, 0.99), (0.1, 0.88)),
    SIX,
    ((0.08, 0.0), (0.92, 0.0), (0.58, 0.5), (0.38, 1.0)),
    ((0.5, 0.47), (0.22, 0.34), (0.22, 0.12), (0.5, 0.0), (0.78, 0.12), (0.78, 0.34), (0.5, 0.47), (0.15, 0.63))
    + ((0.13, 0.87), (0.5, 1.0), (0.87, 0.87), (0.85, 0.63), (0.5, 0.47)),
    tuple((1 - x, 1 - y) for x, y in SIX),
)
POINTS = max(map(len, STROKES))
SPLITS = ("generator", "judge", "reference")
NUMBERS = 512  # a picture has this many random numbers; it uses some 340


def prompt_of(label: Label) -> str:
    return " ".join(names[i] for names, i in zip((COLOUR_NAMES, DIGIT_NAMES) * 2, label, strict=True))


def label_of(prompt: str) -> Label:
    words = prompt.split()
    if len(words) != 4:
        raise ValueError(f"not a colour and a digit, twice: {prompt!r}")
    return tuple(names.index(word) for names, word in zip((COLOUR_NAMES, DIGIT_NAMES) * 2, words, strict=True))


def uniform(start: int) -> np.ndarray:
    """[NUMBERS], each in 0 ... 1: splitmix64 of start, start + 1, ..."""
    with np.errstate(over="ignore"):
        z = (np.arange(NUMBERS, dtype=np.uint64) + np.uint64(start)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


class Stream:
    """The random numbers of one picture, taken one after the other."""

    def __init__(self, numbers: np.ndarray):
        self.numbers, self.next = numbers, 0

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        values = self.numbers[self.next : self.next + count]
        self.next += count
        return low + (high - low) * values.reshape(shape)

    def below(self, count: int) -> int:
        return int(self.between(0, count))

    def normal(self, *shape: int) -> np.ndarray:
        """Four uniforms' sum: near enough, and never far out."""
        return self.between(-1, 1, *shape, 4).sum(-1) * (3 / 4) ** 0.5


@dataclass(frozen=True)
class Digits:
    """jitter: 1 for the full range of sizes, slants and places; 0 for none."""

    split: str
    seed: int = 0
    jitter: float = 0.45

    def start(self, index: int) -> int:
        """Where the picture's hashes begin: seed, split, index and number each have bits of their own."""
        if not 0 <= index < 2**32 or not 0 <= self.seed < 2**20:
            raise ValueError(f"index {index} or seed {self.seed} is out of range")
        return ((self.seed * 4 + SPLITS.index(self.split)) * 2**32 + index) * NUMBERS

    def _stream(self, index: int) -> tuple[Label, Stream]:
        stream = Stream(uniform(self.start(index)))
        return tuple(stream.below(count) for count in (len(COLOURS), 10) * 2), stream

    def label(self, index: int) -> Label:
        return self._stream(index)[0]

    def prompt(self, index: int) -> str:
        return prompt_of(self.label(index))

    def picture(self, index: int, side: int = SIDE) -> np.ndarray:
        """uint8 [side, side, 3]"""
        return np.round(self.draw(index, side) * 255).astype(np.uint8)

    def draw(self, index: int, side: int = SIDE) -> np.ndarray:
        """float32 [side, side, 3] in 0 ... 1. A smaller side is nearly the same picture, smaller."""
        label, stream = self._stream(index)
        place = ((np.arange(side) + 0.5) / side).astype(np.float32)  # 0 ... 1
        picture = ground(stream, place)
        for half in 0, 1:
            columns = slice(half * side // 2, (half + 1) * side // 2)
            digit = STROKES[label[2 * half + 1]]
            cover = stroke(digit, stream, self.jitter, place[columns] - (0.25 + half / 2), place - 0.5)[..., None]
            tint = np.array(COLOURS[COLOUR_NAMES[label[2 * half]]]) + stream.between(-0.05, 0.05, 3)
            picture[:, columns] += (tint.astype(np.float32) - picture[:, columns]) * cover
        return picture.clip(0, 1)


def ground(stream: Stream, place: np.ndarray) -> np.ndarray:
    """[side, side, 3]: grey, with clouds and stripes, tinted."""
    grey = stream.between(0.05, 0.32)
    clouds = 0.1 * stream.normal(5, 5)
    hats = np.maximum(0, 1 - np.abs(place[:, None] * 4 - np.arange(5)))  # [side, 5]
    hats = hats * hats * (3 - 2 * hats)  # smooth steps; the two that overlap still sum to 1
    angle, waves, phase = stream.between(0, np.pi), stream.between(1.5, 5), stream.between(0, 2 * np.pi)
    along = place[:, None] * np.sin(angle) + place[None] * np.cos(angle)
    texture = grey + hats @ clouds @ hats.T + 0.08 * np.sin(2 * np.pi * waves * along + phase)
    return (texture[..., None] * (1 + stream.between(-0.25, 0.25, 3))).clip(0, 0.6).astype(np.float32)


def stroke(digit, stream: Stream, jitter: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[rows, columns]: how much of each pixel the digit covers. x, y: the pixels from the middle of its half."""
    points = np.zeros((POINTS, 2))
    points[: len(digit)], points[len(digit) :] = digit, digit[-1]
    wobble = 0.025 * stream.normal(POINTS, 2)
    wobble[len(digit) :] = wobble[len(digit) - 1]
    points = (points - 0.5 + wobble) * (0.30, 0.52)
    size = 1.05 + 0.22 * jitter * stream.between(-1, 1)
    turn, slant = 0.35 * jitter * stream.between(-1, 1, 2)
    points = points @ np.array([[1, 0], [-0.6 * slant, 1]])
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * size
    points = points + jitter * stream.between(-1, 1, 2) * (0.04, 0.19)
    radius = stream.between(0.03, 0.045)

    near = np.full((len(y), len(x)), 9.0, np.float32)  # squared distance to the line
    for i in range(len(digit) - 1):
        (px, py), (dx, dy) = points[i].astype(np.float32), (points[i + 1] - points[i]).astype(np.float32)
        across, down = (x - px)[None], (y - py)[:, None]
        along = ((across * dx + down * dy) / (dx * dx + dy * dy + np.float32(1e-9))).clip(0, 1)
        near = np.minimum(near, (across - along * dx) ** 2 + (down - along * dy) ** 2)
    return ((radius - np.sqrt(near)) / abs(y[1] - y[0]) + 0.5).clip(0, 1).astype(np.float32)


def sheet(pictures, columns: int) -> np.ndarray:
    """uint8 [rows * side, columns * side, 3]"""
    rows = [np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="PNG of 4 rows of 8 pictures")
    parser.add_argument("--split", choices=SPLITS, default="reference")
    options = parser.parse_args(arguments)
    from PIL import Image

    digits = Digits(options.split)
    Image.fromarray(sheet([digits.picture(i) for i in range(32)], 8)).save(options.out)
    for i in range(0, 32, 8):
        print(" | ".join(digits.prompt(i + j) for j in range(8)))
