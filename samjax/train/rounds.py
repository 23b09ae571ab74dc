"""An annotator's rounds with the model: eleven predictions for every object, in one scan, and their gradient.

Nothing is differentiated from one round to the next: points are drawn, and the logits that are fed back are constants.
(The paper does not say; it calls a round a prediction from given prompts.) So each round's gradient is taken on the
spot and added up: memory does not grow with the rounds, and nothing is computed twice, as rematerialising would.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from samjax.config import SamConfig
from samjax.model.sam import Masks, Prompts, decode_masks
from samjax.train import lora
from samjax.train.losses import Terms, judge, most_confident
from samjax.train.optim import unite
from samjax.train.recipe import Recipe
from samjax.train.simulate import TOP_LEFT, correct, first_prompt, inside_picture, plain_round, point_slot


class Objects(NamedTuple):
    """What there is to be segmented: b images, n objects in each."""

    masks: Array  # (b, n, H, W) bool, over the padded frame
    valid: Array  # (b, n) bool
    size: Array  # (b, 2) int32: the pictures' (h, w) in the frame
    keys: Array  # (b, n) keys


class Turn(NamedTuple):
    """What the annotator has given so far, and the answer: t slots, logits (h, w) of config.mask_size."""

    points: Array
    labels: Array
    logits: Array


def play(config: SamConfig, recipe: Recipe, wanted: dict, frozen: dict, features: Array | None, objects: Objects,
         scale: Array) -> tuple[dict, Terms]:
    """All rounds for all objects.

    Args:
        wanted: what to differentiate by: {"params": a tree of trained parameters of the prompt encoder and the mask
            decoder (and their LoRA factors)}, with "features" (b, h, w, c) beside it if their gradient is wanted.
        frozen: the other parameters of both; features: as above, if they are not in `wanted`.
        scale: scalar; the total that is differentiated is the sum over rounds and valid objects times this.

    Returns:
        gradients like `wanted`, and `Terms` of arrays (rounds,): sums over the valid objects.
    """
    def chunk(objects: Objects) -> tuple[dict, Terms]:
        return _play(config, recipe, wanted, frozen, features, objects, scale)

    b, n = objects.valid.shape
    size = _chunk(config, n)
    if size == n:
        return chunk(objects)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(chunk, _slice(objects, size, 0)))

    def step(total, i):
        part = _slice(objects, size, i)
        more = lax.cond(part.valid.any(), chunk, lambda _: zero, part)  # padding costs nothing
        return jax.tree.map(jnp.add, total, more), None

    return lax.scan(step, zero, jnp.arange(n // size))[0]


def _play(config, recipe, wanted, frozen, features, objects: Objects, scale) -> tuple[dict, Terms]:
    grid = objects.masks.shape[2:]
    inside = jax.vmap(lambda size: inside_picture(config, grid, size))(objects.size)
    per_object = lambda f: jax.vmap(jax.vmap(f, in_axes=(0, None, None, 0)))  # (mask, inside, size, anything else)

    def start(mask, inside, size, key):
        first, plain = jax.random.split(jax.random.fold_in(key, recipe.rounds))
        points, labels = first_prompt(config, recipe, first, mask, inside, size)
        return Turn(points, labels, jnp.zeros(config.mask_size)), plain_round(recipe, plain)

    turn, plain = per_object(start)(objects.masks, inside, objects.size, objects.keys)

    def body(carry, i):
        turn, gradients = carry
        keys = jax.vmap(jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i))))(objects.keys)

        def click(mask, inside, size, given):
            turn, plain, key = given
            prediction = enlarge(turn.logits, grid) > 0
            points, labels = correct(config, key, turn.points, turn.labels, point_slot(recipe, plain, i), mask,
                                     prediction, inside, size)
            return turn._replace(points=points, labels=labels)

        turn = per_object(click)(objects.masks, inside, objects.size, (turn, plain, keys[..., 0]))

        def loss(wanted):
            params = lora.join(unite(frozen, wanted["params"]))
            masks = _answer(config, params, wanted.get("features", features), turn, i > 0, keys[..., 1])
            boxed = turn.labels[..., 0] == TOP_LEFT
            terms, logits = per_object(partial(_judge, recipe, i))(objects.masks, inside, objects.size, (masks, boxed))
            sums = jax.tree.map(lambda x: jnp.where(objects.valid, x, 0.0).sum(), terms)
            return sums.loss * scale, (sums, logits)

        (_, (sums, logits)), more = jax.value_and_grad(loss, has_aux=True)(wanted)
        return (turn._replace(logits=logits), jax.tree.map(jnp.add, gradients, more)), sums

    (_, gradients), sums = lax.scan(body, (turn, jax.tree.map(jnp.zeros_like, wanted)), jnp.arange(recipe.rounds))
    return gradients, sums


def _answer(config: SamConfig, params: dict, features: Array, turn: Turn, again: Array, keys: Array) -> Masks:
    """The decoder's masks for all objects; again: whether the logits of the round before are fed back.

    With dropout each object draws by a key of its own, whatever is beside it.
    """
    def decode(features, turn, key):
        prompts = Prompts(*turn, jnp.broadcast_to(again, turn.labels.shape[:2]))
        with lora.active():
            return decode_masks(config, params, features, prompts, key=key)

    if not config.decoder.dropout:
        return decode(features, turn, None)
    alone = lambda features, turn, key: jax.tree.map(
        lambda x: x[0, 0], decode(features[None], jax.tree.map(lambda x: x[None, None], turn), key))
    return jax.vmap(jax.vmap(alone, in_axes=(None, 0, 0)))(features, turn, keys)


def _judge(recipe: Recipe, i: Array, mask: Array, inside: Array, size: Array,
           answer: tuple[Masks, Array]) -> tuple[Terms, Array]:
    """What one object's answer in round i is worth, and the logits to be fed back.

    A first prompt is answered with three masks, whatever it is; once there is a mask fed back, with the single one.
    answer: the masks, and whether the first prompt was a box.
    """
    (logits, iou), boxed = answer
    allowed = (jnp.arange(iou.shape[0]) == 0) != (i == 0)
    enlarged = enlarge(logits, mask.shape)
    terms = judge(recipe, enlarged, iou, mask, inside, allowed)
    if recipe.single_first:
        single = judge(recipe, enlarged, iou, mask, inside, jnp.arange(iou.shape[0]) == 0)
        terms = terms._replace(loss=terms.loss + jnp.where((i == 0) & boxed, single.loss, 0.0))
    return terms, lax.stop_gradient(logits[most_confident(iou, allowed)])


def enlarge(logits: Array, grid: tuple[int, int]) -> Array:
    """(..., h, w) -> (..., *grid), bilinear with half-pixel centres."""
    if logits.shape[-2:] == tuple(grid):
        return logits
    return jax.image.resize(logits, (*logits.shape[:-2], *grid), "bilinear")


def _slice(objects: Objects, size: int, i: Array | int) -> Objects:
    """Objects i size ... (i + 1) size of each image."""
    cut = lambda x: lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
    return objects._replace(masks=cut(objects.masks), valid=cut(objects.valid), keys=cut(objects.keys))


def _chunk(config: SamConfig, n: int) -> int:
    """How many objects of an image to play at a time: a divisor of n; see config.decode_chunk."""
    limit = config.decode_chunk or (1 if jax.default_backend() == "cpu" else n)
    return max(d for d in range(1, min(limit, n) + 1) if n % d == 0)
