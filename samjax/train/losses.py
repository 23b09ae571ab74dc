"""The losses of one object's masks (Segment Anything, section 3 and appendix A).

Everything here is for one object; callers add axes by `vmap`. A mask is a grid of booleans, a prediction a grid of
logits of the same size.

The focal loss is the mean over the grid, with alpha 0.25 and gamma 2, the dice loss has 1 added above and below. The
paper gives no such numbers; they are those of RetinaNet, DETR and MaskFormer, which it names as its sources, and later
of SAM 2. The padding beside a picture counts as background in both, as it does there; only the IoU is that of the
picture alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from samjax.train.recipe import Recipe


class Terms(NamedTuple):
    """What one prediction for one object is worth: scalars (float32)."""

    loss: Array  # the weighted sum that is minimised
    focal: Array  # of the mask of least loss
    dice: Array
    iou_loss: Array
    iou: Array  # the IoU of the mask of highest predicted IoU
    oracle: Array  # the IoU of the best mask


def focal_loss(logits: Array, mask: Array, alpha: float = 0.25, gamma: float = 2.0) -> Array:
    """Mean over the last two axes of -alpha_t (1 - p_t)^gamma log p_t (Lin et al., 2017); mask is boolean."""
    logits = jnp.where(mask, logits, -logits)  # of the right answer
    weight = jnp.where(mask, alpha, 1.0 - alpha)
    power = int(gamma) if gamma == int(gamma) else gamma  # whole powers are products
    return (weight * jax.nn.sigmoid(-logits) ** power * jax.nn.softplus(-logits)).mean((-2, -1))


def dice_loss(logits: Array, mask: Array) -> Array:
    """1 - (2 |p t| + 1) / (|p| + |t| + 1) over the last two axes (Milletari et al., 2016, as in DETR)."""
    p = jax.nn.sigmoid(logits)
    both = jnp.where(mask, p, 0.0).sum((-2, -1))
    return 1.0 - (2.0 * both + 1.0) / (p.sum((-2, -1)) + mask.sum((-2, -1), dtype=jnp.float32) + 1.0)


def mask_iou(prediction: Array, mask: Array) -> Array:
    """IoU of boolean grids over the last two axes; 0 where both are empty."""
    shared = (prediction & mask).sum((-2, -1), dtype=jnp.float32)
    return shared / jnp.maximum((prediction | mask).sum((-2, -1), dtype=jnp.float32), 1.0)


def judge(recipe: Recipe, logits: Array, predicted: Array, mask: Array, inside: Array, allowed: Array) -> Terms:
    """The loss of one object's m masks; only the allowed one of least loss is learned from.

    Args:
        logits: (m, h, w); predicted: (m,) predicted IoU.
        mask: (h, w) bool, the truth; inside: (h, w) bool, False in the padding beside the picture.
        allowed: (m,) bool: the masks that the prompt is answered with.

    The IoU head is trained on the true IoU of the thresholded prediction, a constant: with recipe.iou_of "best" of the
    mask of least loss alone (the paper: of all its losses "only backpropagate from the lowest"), with "all" of each
    allowed mask, so that it learns which masks are bad (as SAM 2 does: Ravi et al., 2024, on training).
    """
    focal = focal_loss(logits, mask, recipe.focal_alpha, recipe.focal_gamma)
    dice = dice_loss(logits, mask)
    total = recipe.focal * focal + recipe.dice * dice
    least = jnp.argmin(jnp.where(allowed, lax.stop_gradient(total), jnp.inf))
    chosen = jnp.arange(allowed.shape[0]) == least
    pick = lambda values: jnp.where(chosen, values, 0.0).sum()
    iou = mask_iou((logits > 0) & inside, mask & inside)
    errors = jnp.square(predicted - iou)
    if recipe.iou_of == "best":
        iou_loss = pick(errors)
    else:
        iou_loss = jnp.where(allowed, errors, 0.0).sum() / allowed.sum(dtype=jnp.float32)
    return Terms(pick(total) + recipe.iou * iou_loss, pick(focal), pick(dice), iou_loss,
                 iou[most_confident(predicted, allowed)], jnp.where(allowed, iou, 0.0).max())


def most_confident(predicted: Array, allowed: Array) -> Array:
    """Index of the allowed mask of highest predicted IoU."""
    return jnp.argmax(jnp.where(allowed, predicted, -jnp.inf))
