"""Linear resampling of one axis as a sparse matrix, and its application to pictures in bounded memory.

A `Band` lists, for each output cell, the few input cells it mixes. Neighbouring outputs read neighbouring
inputs, so a run of outputs is a small dense matrix times a short run of inputs: that is what BLAS is given.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Band(NamedTuple):
    """output[i] = sum over k of weight[i, k] * input[index[i, k]]; each row of weights sums to 1."""

    index: np.ndarray  # (n_out, k) int64
    weight: np.ndarray  # (n_out, k) float64


def bilinear(n_in: int, n_out: int) -> Band:
    """Half-pixel centres, no antialiasing, edge repeated: torch's `F.interpolate`, align_corners=False.

    Coordinates are rounded to float32 where torch rounds them (one fused multiply-add).
    """
    scale = np.float32(n_in) / np.float32(n_out)
    source = np.maximum(np.float64(scale) * (np.arange(n_out) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(source.astype(np.int64), n_in - 1)
    share = np.clip(source - first.astype(np.float32), 0, 1).astype(np.float64)
    index = np.stack([first, np.minimum(first + 1, n_in - 1)], axis=-1)
    return Band(index, np.stack([1 - share, share], axis=-1))


def area(n_in: int, n_out: int, cell: float | None = None) -> Band:
    """Each output is the mean over its own stretch of `cell` input pixels (default n_in / n_out).

    A last stretch that runs past the input's end is cut there.
    """
    cell = n_in / n_out if cell is None else cell
    edges = np.minimum(np.arange(n_out + 1) * cell, n_in)
    edges[-1] = n_in
    low, high = edges[:-1, None], edges[1:, None]
    index = np.floor(low).astype(np.int64) + np.arange(int(np.ceil(cell)) + 1)
    overlap = np.clip(np.minimum(high, index + 1) - np.maximum(low, index), 0, None)
    overlap[index >= n_in] = 0
    return Band(np.minimum(index, n_in - 1), overlap / overlap.sum(axis=-1, keepdims=True))


def compose(second: Band, first: Band) -> Band:
    """The band that does `first`, then `second`."""
    index = first.index[second.index]
    weight = second.weight[..., None] * first.weight[second.index]
    return Band(index.reshape(len(index), -1), weight.reshape(len(index), -1))


def blocks(band: Band, step: int, dtype=np.float32) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Runs of at most `step` outputs: (output slice, input slice, dense matrix (outputs, inputs))."""
    for start in range(0, len(band.index), step):
        index, weight = band.index[start:start + step], band.weight[start:start + step]
        low, high = int(index.min()), int(index.max()) + 1
        dense = np.zeros((len(index), high - low))
        np.add.at(dense, (np.arange(len(index))[:, None], index - low), weight)
        yield slice(start, start + len(index)), slice(low, high), dense.astype(dtype)


def reduce_rows(band: Band, array: np.ndarray) -> np.ndarray:
    """The band along axis 0 of a large array (n_in, m), a few rows at a time: float32 (n_out, m)."""
    out = np.empty((len(band.index), array.shape[1]), np.float32)
    step = max(1, 2**23 // (band.index.shape[1] * array.shape[1]))  # about 32 MB at a time
    for rows, inputs, dense in blocks(band, step):
        np.matmul(dense, array[inputs].astype(np.float32), out=out[rows])
    return out


def shrink_by_area(image: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w, c) -> uint8 (new_h, new_w, c), neither side growing: the mean over each new pixel's area.

    Bit-equal to OpenCV's INTER_AREA: whole-number ratios are summed exactly (halves up for 2 x 2), others
    weighted in float32, columns first, in OpenCV's order of additions; halves round to even.
    """
    (h, w, c), (new_h, new_w) = image.shape, new_hw
    if h % new_h == 0 and w % new_w == 0:
        a, b = h // new_h, w // new_w
        total = image.reshape(new_h, a, w * c).sum(axis=1, dtype=np.int64)
        total = total.reshape(new_h, new_w, b, c).sum(axis=2)
        if a == b == 2:
            return ((total + 2) >> 2).astype(np.uint8)
        return np.rint(total.astype(np.float32) * np.float32(1 / (a * b))).astype(np.uint8)
    cols, rows = _opencv_area(w, new_w), _opencv_area(h, new_h)
    narrow = np.empty((h, new_w * c), np.float32)
    step = max(1, 2**22 // (w * c))
    for start in range(0, h, step):
        part = image[start:start + step].astype(np.float32)
        narrow[start:start + step] = _weigh(cols, part.swapaxes(0, 1)).swapaxes(0, 1).reshape(len(part), -1)
    return np.clip(np.rint(_weigh(rows, narrow)), 0, 255).astype(np.uint8).reshape(new_h, new_w, c)


def _opencv_area(n_in: int, n_out: int) -> Band:
    """`area` with OpenCV's rounding: float32 weights, and slivers of an input under 1e-3 left out."""
    scale = 1 / (n_out / n_in)
    low = np.arange(n_out)[:, None] * scale
    high = low + scale
    width = np.minimum(scale, n_in - low)
    last = np.minimum(np.floor(high), n_in - 1)
    first = np.minimum(np.ceil(low), last)
    index = first.astype(np.int64) - 1 + np.arange(int(np.ceil(scale)) + 2)
    weight = np.where((index >= first) & (index < last), 1 / width, 0)
    weight = np.where((index == first - 1) & (first - low > 1e-3), (first - low) / width, weight)
    tail = np.minimum(np.minimum(high - last, 1), width)
    weight = np.where((index == last) & (high - last > 1e-3), tail / width, weight)
    return Band(np.clip(index, 0, n_in - 1), weight.astype(np.float32))


def _weigh(band: Band, array: np.ndarray) -> np.ndarray:
    """The band along axis 0, summed in order in float32."""
    shape = (-1,) + (1,) * (array.ndim - 1)
    out = array[band.index[:, 0]] * band.weight[:, 0].reshape(shape)
    for k in range(1, band.index.shape[1]):
        out += array[band.index[:, k]] * band.weight[:, k].reshape(shape)
    return out
