"""A synthetic aerial picture with known shapes: land of plain texture in a sea of one colour. Used by huge.py.

Any part of it can be drawn alone, so that it is never whole in memory. Shapes are discs, turned rectangles and convex
polygons of 40 to 500 px, apart from each other, each in a colour of its own. A shape of less than 1.6 * spacing across
is put over a point of the lattice, because otherwise chance would decide whether any point hits it.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SEA = (24, 46, 74)
BLOCK = 256
KINDS = ("disc", "rectangle", "polygon")
# Roofs, lawns, pools, halls: well apart from the ground's colour.
COLOURS = np.array([(196, 74, 60), (232, 226, 214), (70, 118, 66), (58, 140, 196), (66, 62, 70), (224, 180, 70),
                    (128, 60, 110), (244, 246, 250)], np.float32)
GROUND = np.array((148, 138, 116), np.float32)


@dataclass(frozen=True)
class Shape:
    """A kind, its outline as a polygon (n, 2) in picture pixels, and its colour."""

    kind: str
    outline: tuple[tuple[float, float], ...]
    colour: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 (exclusive) around it."""
        low, high = np.floor(np.min(self.outline, axis=0)), np.ceil(np.max(self.outline, axis=0))
        return int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1

    def mask(self) -> np.ndarray:
        """Its pixels inside its box, bool (h, w)."""
        x0, y0, x1, y1 = self.box
        image = Image.new("1", (x1 - x0, y1 - y0))
        ImageDraw.Draw(image).polygon([(x - x0, y - y0) for x, y in self.outline], fill=1)
        return np.asarray(image)


class Aerial:
    """The picture: size px a side, `regions` islands of land with `each` shapes. The same for the same arguments."""

    def __init__(self, size: int, regions: int, each: int, spacing: float, land: int = 2200, seed: int = 0):
        self.size, self.seed = size, seed
        random = np.random.default_rng(seed)
        self.land = _islands(random, size, regions, land)
        self.shapes = [shape for box in self.land for shape in _place(random, box, each, spacing)]
        self._masks = [shape.mask() for shape in self.shapes]

    def draw(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The pixels there, uint8 (h, w, 3)."""
        out = np.empty((y1 - y0, x1 - x0, 3), np.float32)
        out[:] = SEA
        ground = np.zeros(out.shape[:2], bool)
        for box in self.land:
            part = _meet(box, (x0, y0, x1, y1))
            if part:
                ground[_inside(part, (x0, y0))] = True
        if not ground.any():
            return out.astype(np.uint8)
        out[ground] = GROUND
        for shape, mask in zip(self.shapes, self._masks):
            part = _meet(shape.box, (x0, y0, x1, y1))
            if part:
                out[_inside(part, (x0, y0))][mask[_inside(part, shape.box)]] = COLOURS[shape.colour]
        out[ground] += self._texture(x0, y0, x1, y1)[ground][:, None]
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)

    def _texture(self, x0, y0, x1, y1) -> np.ndarray:
        """Grain and a slow swell, by blocks that do not depend on the window."""
        out = np.empty((y1 - y0, x1 - x0), np.float32)
        for by in range(y0 // BLOCK, -(-y1 // BLOCK)):
            for bx in range(x0 // BLOCK, -(-x1 // BLOCK)):
                box = bx * BLOCK, by * BLOCK, (bx + 1) * BLOCK, (by + 1) * BLOCK
                grain = np.random.default_rng([self.seed, bx, by]).normal(0, 5, (BLOCK, BLOCK)).astype(np.float32)
                part = _meet(box, (x0, y0, x1, y1))
                out[_inside(part, (x0, y0))] = grain[_inside(part, box)]
        x, y = np.arange(x0, x1) / 310, np.arange(y0, y1) / 270
        return out + 5 * (np.sin(x)[None] + np.sin(y)[:, None]).astype(np.float32)


def _islands(random, size: int, regions: int, land: int) -> list[tuple[int, int, int, int]]:
    """Squares of land, apart from each other, anywhere in the picture."""
    found = []
    for _ in range(10_000):
        if len(found) == regions:
            return found
        x, y = (int(v) for v in random.integers(0, size - land + 1, 2))
        box = x, y, x + land, y + land
        if not any(_meet(box, (a - 400, b - 400, c + 400, d + 400)) for a, b, c, d in found):
            found.append(box)
    raise ValueError("the islands do not fit")


def _place(random, land, each: int, spacing: float) -> list[Shape]:
    """Shapes on an island: large ones first, so that all find room."""
    x0, y0, x1, y1 = land
    diameters = np.sort(40 * (500 / 40) ** random.random(each))[::-1]
    found, boxes = [], []
    for diameter in diameters:
        for _ in range(3000):
            reach = diameter / 2 + 24
            centre = random.uniform((x0 + reach, y0 + reach), (x1 - reach, y1 - reach))
            if diameter < 1.6 * spacing:
                centre = (np.floor(centre / spacing) + 0.5) * spacing + random.uniform(-4, 4, 2)
            box = (*(centre - reach), *(centre + reach))
            if not any(_meet(box, other) for other in boxes):
                break
        else:
            continue  # no room for this one
        kind = KINDS[random.integers(len(KINDS))]
        outline = tuple(tuple(point) for point in (_outline(random, kind, diameter / 2) + centre).tolist())
        found.append(Shape(kind, outline, int(random.integers(len(COLOURS)))))
        boxes.append((*(centre - diameter / 2), *(centre + diameter / 2)))
    return found


def _outline(random, kind: str, radius: float) -> np.ndarray:
    """Points on a circle: many, four that make a rectangle, or five to eight."""
    if kind == "disc":
        angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    elif kind == "rectangle":
        half, turn = random.uniform(0.45, math.pi / 2 - 0.45), random.uniform(0, math.pi)
        angles = turn + np.array([half, math.pi - half, math.pi + half, -half])
    else:
        n = int(random.integers(5, 9))
        angles = 2 * math.pi * (np.arange(n) + random.uniform(-0.25, 0.25, n)) / n + random.uniform(0, 2 * math.pi)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _meet(a, b):
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _inside(box, corner) -> tuple[slice, slice]:
    return slice(box[1] - corner[1], box[3] - corner[1]), slice(box[0] - corner[0], box[2] - corner[0])
