"""Masks on an accelerator: what `samjax.upscale.measure` does on the host, for many masks at once, jit-able."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from samjax.config import SamConfig
from samjax.geometry import _upscaling, target_size


def bucket(side: int) -> int:
    """The number of pixels that a side is filled up to: so that few programs serve pictures of all sizes."""
    step = 256 if side <= 2048 else 1024
    return -(-side // step) * step


def matrices(config: SamConfig, image_hw: tuple[int, int],
             padded_hw: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The official postprocess as two matrices (h, H) and (w, W): upscaled = rows @ logits @ columns.T.

    padded_hw: more rows for each, of zeros.
    """
    both = []
    new_hw = target_size(*image_hw, config.image_size)
    for n_mask, n_model, n_new, n, padded in zip(config.mask_size, config.image_size, new_hw, image_hw,
                                                 padded_hw or image_hw):
        matrix = np.zeros((padded, n_mask), np.float32)
        for to, source, dense in _upscaling(n_mask, n_model, n_new, n, 128):
            matrix[to, source] = dense
        both.append(matrix)
    return tuple(both)


def measure(logits: Array, rows: Array, columns: Array, offset: float,
            image_hw: Array | None = None) -> tuple[Array, Array]:
    """Counts and boxes of n masks at the picture's size, one mask in memory at a time.

    Args:
        logits: (n, H, W) float32.
        rows, columns: see `matrices`.
        offset: of the two further cuts.
        image_hw: (2,) the picture's size where the matrices are padded.

    Returns:
        counts (n, 3) int32, pixels above +offset, 0 and -offset; boxes (n, 4) int32, x0, y0, x1, y1, all inclusive,
        zeros for an empty mask.
    """
    h, w = (len(rows), len(columns)) if image_hw is None else image_hw
    there = (jnp.arange(len(rows)) < h)[:, None] & (jnp.arange(len(columns)) < w)

    def one(mask):
        with jax.default_matmul_precision("highest"):
            values = jnp.where(there, rows @ mask @ columns.T, -jnp.inf)
        counts = [jnp.sum(values > cut, dtype=jnp.int32) for cut in (offset, 0.0, -offset)]
        inside = values > 0
        (x0, x1), (y0, y1) = _ends(inside.any(axis=0)), _ends(inside.any(axis=1))
        return jnp.stack(counts), jnp.where(counts[1] > 0, jnp.stack([x0, y0, x1, y1]), 0)

    return lax.map(one, logits)


def _ends(hit: Array) -> tuple[Array, Array]:
    return jnp.argmax(hit), hit.shape[0] - 1 - jnp.argmax(hit[::-1])
