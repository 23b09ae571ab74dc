"""Where a picture lies in the model's square, and its masks brought there straight from their run lengths.

A mask is never made at the picture's own size. Each run adds to the cells of the low-resolution grid what it covers of
them, as a few impulses; two cumulative sums make the covered shares of them. The cost is that of the runs and of the
object's own cells.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from samjax import geometry
from samjax.config import SamConfig
from samjax.image import read_image

HALF = 0.5 - 1e-9  # shares are right to 1e-12; a cell that is covered by half exactly counts as covered
NOTHING = 1e-9  # a share under this is rounding


@dataclass(frozen=True)
class Frame:
    """The picture is flipped, scaled to scaled_hw, and put into the square size so that `offset` is at the top left.

    image_hw: the picture's own (h, w); offset: (y, x), scaled pixels cut off above and left; flip: left for right.
    """

    image_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    flip: bool = False

    @property
    def valid(self) -> tuple[int, int]:
        """(h, w) of the picture within the square; what is below and right of it is padding."""
        return tuple(min(n - o, s) for n, o, s in zip(self.scaled_hw, self.offset, self.size))

    @property
    def plain(self) -> bool:
        """Whether this is what `geometry.prepare` does."""
        return self == plain(self.image_hw, self.size)


def plain(image_hw: tuple[int, int], size: tuple[int, int]) -> Frame:
    """The frame of inference: the longest side fits, nothing is cut off."""
    return Frame(tuple(image_hw), geometry.target_size(*image_hw, size), tuple(size))


def pixels(picture: Image.Image, frame: Frame, config: SamConfig) -> np.ndarray:
    """The picture in the frame: uint8 (H, W, channels), zeros outside. Bit-equal to `geometry.prepare` if plain."""
    (valid_h, valid_w), (off_y, off_x) = frame.valid, frame.offset
    if frame.flip:  # the mirror image of a window is the window of the mirror image
        off_x = frame.scaled_hw[1] - off_x - valid_w
    if picture.mode == "RGB" and config.in_channels == 3 and config.resize == "bilinear":
        part = _window(picture, frame, off_y, off_x)
    else:
        image = geometry.resize(read_image(picture, config.in_channels), frame.scaled_hw, config.resize)
        part = image[off_y:off_y + valid_h, off_x:off_x + valid_w]
    out = np.zeros((*frame.size, config.in_channels), np.uint8)
    out[:valid_h, :valid_w] = part[:, ::-1] if frame.flip else part
    return out


def _window(picture: Image.Image, frame: Frame, off_y: int, off_x: int) -> np.ndarray:
    """Resizing and cutting by Pillow alone: an array of the whole picture would cost as much as decoding it."""
    (h, w), (scaled_h, scaled_w), (valid_h, valid_w) = frame.image_hw, frame.scaled_hw, frame.valid
    if (valid_h, valid_w) == (scaled_h, scaled_w):
        box = None
    else:
        box = (off_x * w / scaled_w, off_y * h / scaled_h,
               min(w, (off_x + valid_w) * w / scaled_w), min(h, (off_y + valid_h) * h / scaled_h))
    return np.asarray(picture.resize((valid_w, valid_h), Image.Resampling.BILINEAR, box=box))


def shares(counts: np.ndarray, frame: Frame, cells: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """What an object covers of each cell of the grid `cells` (h, w) over the frame.

    counts: run lengths in the picture. Returns float64 (a, b), all cells that it touches, and the first of them
    (row, column). A cell at the picture's edge counts as large as its part inside the picture. Empty where nothing of
    the object lies in the frame.
    """
    x, top, bottom = _columns(counts, frame.image_hw[0])
    w = frame.image_hw[1]
    if frame.flip:
        x = w - 1 - x
    rows, columns = _Axis(frame, cells, 0), _Axis(frame, cells, 1)
    top, bottom, left, right = rows.place(top), rows.place(bottom), columns.place(x), columns.place(x + 1)
    seen = (bottom > top) & (right > left)
    if not seen.all():
        top, bottom, left, right = top[seen], bottom[seen], left[seen], right[seen]
    if not len(top):
        return np.zeros((0, 0)), (0, 0)
    first, last = (int(top.min()), int(left.min())), (int(np.ceil(bottom.max())), int(np.ceil(right.max())))
    a, b = last[0] - first[0], last[1] - first[1]
    row, row_weight = _impulses(top - first[0], bottom - first[0])
    column, column_weight = _impulses(left - first[1], right - first[1])
    place = row[:, None] * (b + 2) + column[None]
    covered = np.bincount(place.ravel(), (row_weight[:, None] * column_weight[None]).ravel(), (a + 2) * (b + 2))
    covered = covered.reshape(a + 2, b + 2).cumsum(axis=0).cumsum(axis=1)[:a, :b]
    return covered / (rows.room(first[0], a)[:, None] * columns.room(first[1], b)), first


def to_cells(counts: np.ndarray, frame: Frame, cells: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The object on the grid: bool (a, b), and the first cell (row, column) of that part.

    Set is what is covered by at least half. An object too small or too thin to cover any cell so far keeps those that
    it covers at least half as far as its best one, so none vanishes that has a pixel in the frame.
    """
    share, first = shares(counts, frame, cells)
    best = share.max(initial=0)
    if best < NOTHING:
        return np.zeros((0, 0), bool), first
    return share >= (HALF if best >= HALF else best * HALF), first


class _Axis:
    """Picture coordinates of one axis in units of cells."""

    def __init__(self, frame: Frame, cells: tuple[int, int], axis: int):
        stride = frame.size[axis] / cells[axis]  # model pixels a cell
        self.scale = frame.scaled_hw[axis] / frame.image_hw[axis] / stride
        self.start = frame.offset[axis] / stride
        self.end = frame.valid[axis] / stride

    def place(self, position: np.ndarray) -> np.ndarray:
        return np.clip(position * self.scale - self.start, 0, self.end)

    def room(self, first: int, n: int) -> np.ndarray:
        """How much of each of n cells from the first lies in the picture."""
        return np.minimum(self.end - np.arange(first, first + n), 1)


def _columns(counts: np.ndarray, h: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs as stretches within single columns: x, first y, end y."""
    edges = np.cumsum(counts)
    start, end = edges[:-1:2], edges[1::2]
    kept = end > start
    start, end = start[kept], end[kept]
    x, last = start // h, (end - 1) // h
    n = last - x + 1
    if n.max(initial=1) == 1:
        return x, start - x * h, end - x * h
    run = np.repeat(np.arange(len(n)), n)
    column = x[run] + np.arange(len(run)) - np.repeat(np.cumsum(n) - n, n)
    top = np.maximum(start[run] - column * h, 0)
    return column, top, np.minimum(end[run] - column * h, h)


def _impulses(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(4, n) cells and weights whose cumulative sum is how much [start, end) covers of each cell."""
    low, high = start.astype(np.int64), end.astype(np.int64)
    low_part, high_part = start - low, end - high
    cell = np.stack([low, low + 1, high, high + 1])
    return cell, np.stack([1 - low_part, low_part, high_part - 1, -high_part])
