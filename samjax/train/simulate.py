"""The simulated annotator (Segment Anything, appendix A, "Training algorithm"): first prompt, then corrections.

Everything here is for one object; callers add axes by `vmap`. Masks are grids (H, W) over the whole padded frame that
the encoder sees, cells of one pixel or more; points and boxes are pixels of that frame, x before y, as `Prompts` has
them. A point is a pixel's index: the model takes it to mean the pixel's centre.

An object has 1 + recipe.points slots: two hold the first prompt (a point and the "not a point" token, or a box's
corners), the others one further point each, empty until it is given.
"""

import jax
import jax.numpy as jnp
from jax import Array

from samjax.config import SamConfig
from samjax.train.recipe import Recipe

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT, NOT_A_POINT, EMPTY = 0, 1, 2, 3, -1, -2
FRAME = 1024  # the input size of the paper, which its limit of the boxes' noise is meant for
FIRST = 2  # slots of the first prompt


def inside_picture(config: SamConfig, grid: tuple[int, int], size: Array) -> Array:
    """(H, W) bool: cells whose centres lie in the picture, size (2,) its (h, w) in the frame."""
    y, x = ((jnp.arange(cells, dtype=jnp.float32) + 0.5) * (side / cells)
            for cells, side in zip(grid, config.image_size))
    h, w = size.astype(jnp.float32)
    return (y[:, None] < h) & (x < w)


def first_prompt(config: SamConfig, recipe: Recipe, key: Array, mask: Array, inside: Array,
                 size: Array) -> tuple[Array, Array]:
    """Either a point, uniform in the mask, or the mask's noisy box.

    Args:
        mask: (H, W) bool, the truth; inside: (H, W) bool from `inside_picture`; size: (2,) int32 (h, w).

    Returns:
        points (t, 2) float32 and labels (t,) int32 of all t slots. No foreground point is given in an empty mask.
    """
    which, where, noise = jax.random.split(key, 3)
    region = mask & inside
    point = uniform_point(config, where, region, size)
    box = noisy_box(config, recipe, noise, region, size)
    is_box = jax.random.bernoulli(which, recipe.boxes)
    points = jnp.where(is_box, box, jnp.stack([point, jnp.zeros(2)]))
    labels = jnp.where(is_box, jnp.array([TOP_LEFT, BOTTOM_RIGHT]), jnp.array([FOREGROUND, NOT_A_POINT]))
    labels = jnp.where(region.any(), labels, jnp.array([EMPTY, NOT_A_POINT]))
    later = recipe.points + 1 - FIRST
    return jnp.pad(points, ((0, later), (0, 0))), jnp.pad(labels, (0, later), constant_values=EMPTY)


def correct(config: SamConfig, key: Array, points: Array, labels: Array, slot: Array, mask: Array, prediction: Array,
            inside: Array, size: Array) -> tuple[Array, Array]:
    """One more point in the given slot, uniform in the error region: label 1 on a miss, 0 on a false alarm.

    Where the prediction has no error there is nothing to click: the slot stays empty, and the round becomes one
    without a new point. A slot beyond the last changes nothing.
    """
    error = (prediction != mask) & inside
    which, within = jax.random.split(key)
    row, column = uniform_cell(which, error)
    point = to_pixel(config, within, row, column, error.shape, size)
    label = jnp.where(error.any(), jnp.where(mask[row, column], FOREGROUND, BACKGROUND), EMPTY)
    here = jnp.arange(labels.shape[0]) == slot
    return jnp.where(here[:, None], point, points), jnp.where(here, label, labels)


def plain_round(recipe: Recipe, key: Array) -> Array:
    """Which of the rounds 1 ... points is the one without a new point that comes at a random place."""
    return jax.random.randint(key, (), 1, recipe.points + 1)


def point_slot(recipe: Recipe, plain: Array, i: Array) -> Array:
    """The slot of the point given in round i; in rounds that give none (first, plain, last) one that does not exist."""
    nowhere = recipe.points + 1
    before = jnp.where(i > plain, 1, 0) if recipe.refinements == 2 else 0
    skipped = (i == 0) | (i - before >= recipe.points)
    if recipe.refinements == 2:
        skipped |= i == plain
    return jnp.where(skipped, nowhere, FIRST - 1 + i - before)


def uniform_point(config: SamConfig, key: Array, region: Array, size: Array) -> Array:
    """(2,) float32: a pixel drawn uniformly among the cells of the region, and within the cell."""
    which, within = jax.random.split(key)
    row, column = uniform_cell(which, region)
    return to_pixel(config, within, row, column, region.shape, size)


def uniform_cell(key: Array, region: Array) -> tuple[Array, Array]:
    """Row and column of a cell drawn uniformly from the region (H, W) bool; any cell if it is empty.

    Each cell draws a number and the region's highest wins: a cell more or less in the region seldom changes the draw,
    so that rounding, which differs among devices, seldom changes a training run.
    """
    lots = jax.random.bits(key, region.shape, jnp.uint32) | jnp.uint32(1)
    return jnp.divmod(jnp.argmax(jnp.where(region, lots, jnp.uint32(0))), region.shape[1])


def to_pixel(config: SamConfig, key: Array, row: Array, column: Array, grid: tuple[int, int], size: Array) -> Array:
    """(2,) float32, x before y: the index of a pixel drawn uniformly within a cell, but within the picture."""
    scale = jnp.array([config.image_size[1] / grid[1], config.image_size[0] / grid[0]], jnp.float32)
    within = jax.random.uniform(key, (2,))
    pixel = jnp.floor((jnp.stack([column, row]).astype(jnp.float32) + within) * scale)
    return jnp.minimum(pixel, size[::-1].astype(jnp.float32) - 1.0)


def mask_box(config: SamConfig, region: Array) -> Array:
    """(4,) float32 x0, y0, x1, y1: the edges of the region's box in pixels, the far ones exclusive."""
    ends = []
    for axis, side, cells in ((0, config.image_size[1], region.shape[1]), (1, config.image_size[0], region.shape[0])):
        hit = region.any(axis)
        edges = jnp.stack([jnp.argmax(hit), cells - jnp.argmax(hit[::-1])])
        ends.append(edges.astype(jnp.float32) * (side / cells))
    return jnp.stack(ends, axis=1).reshape(4)


def noisy_box(config: SamConfig, recipe: Recipe, key: Array, region: Array, size: Array) -> Array:
    """(2, 2) float32: the corners of the region's box, each coordinate noised, within the picture.

    The noise is normal with recipe.box_noise of the side as its deviation, cut off at recipe.box_noise_limit pixels.
    """
    corners = mask_box(config, region).reshape(2, 2)
    limit = recipe.box_noise_limit * max(config.image_size) / FRAME
    noise = jax.random.normal(key, (2, 2)) * recipe.box_noise * (corners[1] - corners[0])
    corners = corners + jnp.clip(noise, -limit, limit)
    corners = jnp.clip(corners, 0.0, size[::-1].astype(jnp.float32))
    return jnp.sort(corners, axis=0)
