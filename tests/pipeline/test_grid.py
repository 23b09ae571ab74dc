"""Masks on the grid against exact fractions, pixel by pixel."""

import math
from fractions import Fraction

import numpy as np
import pytest

from samjax import rle
from samjax.data.frame import Frame, plain
from samjax.data.grid import shares, to_cells


def exact_overlaps(n, scaled, offset, size, cells):
    """How much of each cell's part inside the picture each pixel covers: (cells, n) integers, and what makes 1."""
    valid = min(scaled - offset, size)
    rows = []
    for i in range(cells):
        low, high = (Fraction(min(Fraction(size * k, cells), valid) + offset) * n / scaled for k in (i, i + 1))
        room = high - low
        rows.append([max(Fraction(0), min(high, k + 1) - max(low, k)) / room if room else Fraction(0)
                     for k in range(n)])
    one = math.lcm(*(value.denominator for row in rows for value in row))
    return np.array([[int(value * one) for value in row] for row in rows], object).reshape(cells, n), one


def exact(mask, frame, cells):
    """Shares as integers, what makes 1, and the mask on the grid."""
    mask = mask[::-1 if frame.upside else 1, ::-1 if frame.flip else 1]
    (rows, one), (columns, other) = (exact_overlaps(mask.shape[axis], frame.scaled_hw[axis], frame.offset[axis],
                                                    frame.size[axis], cells[axis]) for axis in (0, 1))
    share, one = rows @ mask.astype(int).astype(object) @ columns.T, one * other
    best = share.max()
    return share, one, (2 * share >= (one if 2 * best >= one else best)) & (share > 0)


def on_grid(parts, cells):
    out = []
    for part, (i, j) in parts:
        full = np.zeros(cells, part.dtype)
        full[i:i + part.shape[0], j:j + part.shape[1]] = part
        out.append(full)
    return out


def random_frame(rng, kind):
    h, w = (int(side) for side in rng.integers(1, 22, 2))
    size = (int(rng.choice([16, 32])), int(rng.choice([16, 32])))
    if kind == "plain":
        return plain((h, w), size)
    scaled = tuple(int(side) for side in rng.integers(1, 50, 2))
    offset = tuple(int(rng.integers(max(n - s, 0) + 1)) for n, s in zip(scaled, size))
    return Frame((h, w), scaled, size, offset, flip=bool(rng.integers(2)), upside=bool(rng.integers(2)))


@pytest.mark.parametrize("kind", ["plain", "jittered"])
def test_equal_to_exact_areas(kind):
    rng = np.random.default_rng(1)
    for _ in range(40):
        frame, cells = random_frame(rng, kind), (int(rng.choice([4, 8])), int(rng.choice([4, 8, 16])))
        masks = [rng.random(frame.image_hw) < density for density in (0.05, 0.5, 0.95)] + [np.zeros(frame.image_hw)]
        counts = [rle.encode(mask.astype(bool)) for mask in masks]
        for mask, share, got in zip(masks, on_grid(shares(counts, frame, cells), cells),
                                    on_grid(to_cells(counts, frame, cells), cells)):
            want, one, want_mask = exact(mask.astype(bool), frame, cells)
            assert np.abs(share - (want / one).astype(float)).max() < 1e-12
            assert np.array_equal(got, want_mask.astype(bool))


def test_half_covered_counts():
    mask = np.zeros((8, 8), bool)
    mask[:, :3] = True  # cells of 2 x 2: the second column is covered by half exactly
    (part, first), = to_cells([rle.encode(mask)], plain((8, 8), (16, 16)), (4, 4))
    assert np.array_equal(on_grid([(part, first)], (4, 4))[0], np.array([[1, 1, 0, 0]] * 4, bool))


@pytest.mark.parametrize("thing", ["dot", "line", "diagonal"])
def test_small_and_thin_objects_do_not_vanish(thing):
    mask = np.zeros((1000, 1500), bool)
    if thing == "dot":
        mask[501, 702] = True
    elif thing == "line":
        mask[100:900, 702] = True
    else:
        mask[np.arange(100, 900), np.arange(100, 900)] = True
    (part, (i, j)), = to_cells([rle.encode(mask)], plain((1000, 1500), (1024, 1024)), (256, 256))
    rows, columns = np.nonzero(part)
    cell = 1500 / 256
    if thing == "dot":
        assert [(i + rows[0]), (j + columns[0])] == [int(501.5 / cell), int(702.5 / cell)] and len(rows) == 1
    else:
        assert len(set(rows)) > 130  # all along it
        assert thing == "line" or np.abs((i + rows) - (j + columns)).max() <= 1


def test_outside_the_frame_is_nothing():
    mask = np.zeros((20, 20), bool)
    mask[:5, :5] = True
    frame = Frame((20, 20), (80, 80), (32, 32), (40, 40))
    (part, _), = to_cells([rle.encode(mask)], frame, (8, 8))
    assert part.shape == (0, 0) and not part.any()
    assert to_cells([], frame, (8, 8)) == []
