"""Distillation: a light image encoder learns to give a heavy one's features; all that follows is the teacher's.

This is the "decoupled distillation" that made MobileSAM (Zhang et al., 2023, "Faster Segment Anything", section 3.3),
whose training code was never published: mean squared error between the encoders' features, prompt encoder and mask
decoder of the teacher taken over unchanged. On top of it, if asked for, the teacher's decoder looks at both features
with the same prompts, and the masks are compared too, as in EdgeSAM (Zhou et al., 2023); there the teacher's masks are
thresholded, here they stay probabilities, so that the loss is zero where student and teacher agree.

    config = distilled_config(student, teacher)
    params = begin(student, teacher, teacher_params, key)
    state = init_state(config, recipe, params, key)              # a recipe such as DISTILL, that trains "encoder"
    step = make_distill_step(student, teacher, recipe, Losses())  # for jit, pmap_step, mesh_step, loop.train(step=...)

The teacher never runs: its features are part of the batch, from `samjax.embeddings` or `samjax.train.material.embed`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from samjax.config import SamConfig
from samjax.errors import InputError
from samjax.model.sam import Prompts, decode_masks, init
from samjax.train.losses import mask_iou
from samjax.train.optim import make_optimiser, make_schedule, split, trained, unite
from samjax.train.recipe import Recipe
from samjax.train.simulate import TOP_LEFT, first_prompt, inside_picture
from samjax.train.step import TrainState, advance, check_batch, countable, encode, image_keys, in_parts, training_config
from samjax.train.sums import summed

# objects: random points in a picture whose masks are not given. A distillation's own: MobileSAM's paper names no rate.
DISTILL = Recipe(batch=8, objects=4, points=1, refinements=0, boxes=0.5, steps=10_000, lr=1e-3, warmup=200,
                 schedule="cosine", drops=(), weight_decay=0.01, layer_decay=1.0, clip=1.0, drop_path=0.0, dropout=0.0,
                 train="encoder")
SHARED = ("norm1", "conv2", "norm2")  # of the neck: what follows the map from the encoder's own width


@dataclass(frozen=True)
class Losses:
    """What the parts of the loss weigh. features: the mean squared error of the features; bce, dice: of the masks that
    the teacher's decoder makes of them. Where both are 0, the decoder does not run."""

    features: float = 1.0
    bce: float = 0.0
    dice: float = 0.0

    @property
    def masks(self) -> bool:
        return bool(self.bce or self.dice)


def distilled_config(student: SamConfig, teacher: SamConfig) -> SamConfig:
    """The student's config with the teacher's decoder. Raises InputError if their features' grids differ."""
    if student.grid != teacher.grid:
        raise InputError(f"the student's features are {student.grid[0]} x {student.grid[1]}, the teacher's "
                         f"{teacher.grid[0]} x {teacher.grid[1]}: the decoder cannot be taken over")
    return replace(student, decoder=teacher.decoder, channels=teacher.channels)


def begin(student: SamConfig, teacher: SamConfig, params: dict, key: Array) -> dict:
    """Parameters to start from: a random encoder and, from the teacher's params, everything else.

    The neck behind its first map is the teacher's at the start: it has the same shapes in all models.
    """
    config = distilled_config(student, teacher)
    encoder = jax.jit(lambda key: init(config, key)["image_encoder"])(key)
    neck = {name: params["image_encoder"]["neck"][name] for name in SHARED}
    taken = {name: params[name] for name in ("prompt_encoder", "mask_decoder")}
    return {"image_encoder": encoder | {"neck": encoder["neck"] | neck}} | taken


def make_distill_step(student: SamConfig, teacher: SamConfig, recipe: Recipe, losses: Losses = Losses()) -> Callable:
    """The function `step(state, batch, axis_name=None) -> (state, metrics)`; see `step.make_step`.

    A batch is a dict of arrays: "image" uint8 (b, H, W, c) in the student's frame; "features" float32 (b, h, w, 256),
    the teacher's; "size", "masks" and "valid" as there, with n = 0 for pictures without masks: what
    `samjax.data.make_pipeline(..., images=True)` gives. Masks count only where losses.masks: each object gets a first
    prompt of SAM's training, a point or a noisy box (recipe.boxes). Without masks the prompts are recipe.objects points
    anywhere in the picture: what the teacher makes of them is the truth, so any will do.

    The loss is the mean over pictures, and over prompts and their masks (three of a point, the single one of a box).
    Metrics: loss, mse; cosine (mean over the features' cells); with losses.masks also bce, dice, and iou, of the
    student's with the teacher's masks; grad_norm, learning_rate, finite.

    Raises InputError for a recipe that trains anything but "encoder", for features of different grids, and, when
    traced, for a batch of other names or shapes.
    """
    if recipe.train != "encoder":
        raise InputError(f"a distillation trains the encoder: recipe.train must be 'encoder', not {recipe.train!r}")
    config = training_config(distilled_config(student, teacher), recipe)
    optimiser, schedule = make_optimiser(config, recipe), make_schedule(recipe)

    def step(state: TrainState, batch: dict, axis_name: str | None = None) -> tuple[TrainState, dict]:
        check_pairs(config, recipe, batch)
        total = lambda tree: lax.psum(tree, axis_name) if axis_name else tree
        chosen, frozen = split(state.params, partial(trained, recipe))
        b = len(batch["image"])
        batch = batch | {"keys": image_keys(state, b, axis_name)}
        if losses.masks:
            batch = _with_regions(config, recipe, batch)
        counts = total({"pictures": jnp.float32(b), "prompts": batch["valid"].sum(dtype=jnp.float32)})
        counts = jax.tree.map(lambda count: jnp.maximum(count, 1.0), counts)

        def sums_of(given, batch: dict):
            return in_parts(lambda part: _gradients(config, recipe, losses, *given, part), recipe.accumulate, batch)

        gradients, metrics = total(summed(sums_of)((chosen, frozen, counts), batch))
        metrics["learning_rate"] = schedule(state.step)
        return advance(optimiser, state, chosen, frozen, gradients, metrics)

    return step


def check_pairs(config: SamConfig, recipe: Recipe, batch: dict) -> None:
    """Raises InputError if a batch has not the arrays that `make_distill_step` describes."""
    if not {"image", "features"} <= batch.keys():
        raise InputError(f"a batch needs image and the teacher's features; this one has {', '.join(sorted(batch))}")
    for left_out in ("features", "image"):
        check_batch(config, recipe, {name: array for name, array in batch.items() if name != left_out})


def _gradients(config, recipe, losses, chosen, frozen, counts, batch) -> tuple[dict, dict]:
    """Gradients like `chosen`, and the metrics, of some pictures: their shares of the whole batch's."""
    keys = jax.vmap(lambda key: jax.random.split(key))(batch["keys"])

    def loss(chosen):
        params = unite(chosen, frozen)
        features, wanted = encode(config, params, batch["image"], batch["size"], keys[:, 0]), batch["features"]
        share = lambda x: x.sum() / counts["pictures"]
        metrics = {"mse": share(jnp.square(features - wanted).mean((1, 2, 3))),
                   "cosine": share(cosine(features, wanted).mean((1, 2)))}
        value = losses.features * metrics["mse"]
        if losses.masks:
            compared = _compare(config, recipe, params, features, batch, keys[:, 1])
            metrics |= {name: jnp.where(batch["valid"], x, 0.0).sum() / counts["prompts"]
                        for name, x in compared.items()}
            value += losses.bce * metrics["bce"] + losses.dice * metrics["dice"]
        return value, metrics | {"loss": value}

    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(chosen)
    return gradients, metrics


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the angle between vectors along the last axis; 0 where one is zero."""
    norm = lambda x: jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1), 1e-12))
    return (a * b).sum(-1) / (norm(a) * norm(b))


def _with_regions(config: SamConfig, recipe: Recipe, batch: dict) -> dict:
    """The batch with masks to draw prompts from: where it has none, recipe.objects times the whole picture."""
    b, n = batch["valid"].shape
    if n:
        return batch | {"valid": countable(config, batch)}
    inside = jax.vmap(lambda size: inside_picture(config, config.mask_size, size))(batch["size"])
    masks = jnp.broadcast_to(inside[:, None], (b, recipe.objects, *config.mask_size))
    return batch | {"masks": masks, "valid": jnp.ones((b, recipe.objects), bool), "anywhere": jnp.ones(b, bool)}


def _compare(config: SamConfig, recipe: Recipe, params: dict, features: Array, batch: dict, keys: Array) -> dict:
    """(b, n) arrays bce, dice, iou: the decoder's answers to the same prompts on either features."""
    boxes = 0.0 if "anywhere" in batch else recipe.boxes
    points, labels = _prompts(config, replace(recipe, boxes=boxes), batch, keys)
    mine, theirs = (decode_masks(config, params, x, Prompts(points, labels)).logits
                    for x in (features, batch["features"]))
    inside = jax.vmap(lambda size: inside_picture(config, config.mask_size, size))(batch["size"])
    compare = jax.vmap(jax.vmap(jax.vmap(agreement, in_axes=(0, 0, None)), in_axes=(0, 0, None)))
    found = compare(mine, lax.stop_gradient(theirs), inside)
    single = jnp.arange(mine.shape[2]) == 0
    answers = single == (labels[..., :1] == TOP_LEFT)
    return {name: jnp.where(answers, x, 0.0).sum(-1) / answers.sum(-1, dtype=jnp.float32) for name, x in found.items()}


def _prompts(config: SamConfig, recipe: Recipe, batch: dict, keys: Array) -> tuple[Array, Array]:
    """points (b, n, t, 2) and labels (b, n, t): a first prompt of each object."""
    masks = batch["masks"]

    def picture(key, masks, size):
        inside = inside_picture(config, masks.shape[1:], size)
        draw = lambda j, mask: first_prompt(config, recipe, jax.random.fold_in(key, j), mask, inside, size)
        return jax.vmap(draw)(jnp.arange(masks.shape[0]), masks)

    return jax.vmap(picture)(keys, masks, batch["size"])


def agreement(logits: Array, wanted: Array, inside: Array) -> dict[str, Array]:
    """How well one mask's logits (h, w) agree with the teacher's, over the cells of the picture: scalars.

    bce: the binary cross-entropy with the teacher's probabilities, less their own entropy (so: the divergence of the
    two; the gradient is the same). dice: 1 - (2 |p t| + 1) / (|p p| + |t t| + 1), with squares below (Milletari et al.,
    2016), since only those make it 0 for equal probabilities. iou: of the thresholded masks.
    """
    p, t = jax.nn.sigmoid(logits), jax.nn.sigmoid(wanted)
    entropy = lambda logits: jax.nn.softplus(logits) - t * logits
    over = lambda x: jnp.where(inside, x, 0.0).sum()
    bce = over(entropy(logits) - entropy(wanted)) / inside.sum(dtype=jnp.float32)
    dice = 1.0 - (2.0 * over(p * t) + 1.0) / (over(p * p + t * t) + 1.0)
    return {"bce": bce, "dice": dice, "iou": mask_iou((logits > 0) & inside, (wanted > 0) & inside)}
