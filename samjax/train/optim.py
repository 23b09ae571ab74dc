"""The optimiser (Segment Anything, appendix A, "Training recipe"): AdamW, warm-up and steps, layer-wise rates.

Which parameter gets what follows from its path in the tree, such as image_encoder/blocks_3/attn/qkv/kernel.
"""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from samjax.config import SamConfig, ViT
from samjax.model.image_encoder import group_shape
from samjax.train.recipe import Recipe

BUFFERS = ("gaussian", "norm_mean", "norm_var")  # the random Fourier matrix and BatchNorm's statistics
Rule = Callable[[str], bool]  # path -> whether it is trained


def trained(recipe: Recipe, path: str) -> bool:
    """Whether recipe.train names this parameter. Buffers are never trained.

    "everything", "encoder" (the image encoder), "decoder" (prompt encoder and mask decoder), "lora" (the factors
    alone) or "lora+decoder" (the factors and the decoder).
    """
    branch, _, rest = path.partition("/")
    if rest.rpartition("/")[2] in BUFFERS:
        return False
    if recipe.train == "everything":
        return True
    branches = {"encoder": ("image_encoder",), "decoder": ("prompt_encoder", "mask_decoder"), "lora": ("lora",),
                "lora+decoder": ("lora", "prompt_encoder", "mask_decoder")}[recipe.train]
    return branch in branches


def split(params: dict, rule: Rule) -> tuple[dict, dict]:
    """(trained, frozen): two trees that together are the tree."""
    flat = flatten_dict(params, sep="/")
    parts = ({path: leaf for path, leaf in flat.items() if rule(path) is wanted} for wanted in (True, False))
    return tuple(unflatten_dict(part, sep="/") for part in parts)


def unite(*parts: dict) -> dict:
    """The inverse of `split`."""
    return unflatten_dict({path: leaf for part in parts for path, leaf in flatten_dict(part, sep="/").items()}, sep="/")


def make_schedule(recipe: Recipe) -> Callable[[Array], Array]:
    """step (from 0) -> learning rate.

    Linear warm-up that reaches the full rate in the last of recipe.warmup steps; then by recipe.schedule: "steps"
    divides by 10 at each of recipe.drops, "cosine" falls to 0 at recipe.steps, "constant" stays.
    """
    def schedule(step: Array) -> Array:
        step = jnp.asarray(step)
        rate = jnp.minimum((step + 1).astype(jnp.float32) / max(recipe.warmup, 1), 1.0)
        if recipe.schedule == "steps":
            passed = sum((step >= drop).astype(jnp.float32) for drop in recipe.drops)
            rate *= 0.1**passed
        elif recipe.schedule == "cosine":
            length = max(recipe.steps - recipe.warmup, 1)
            share = jnp.clip((step - recipe.warmup).astype(jnp.float32) / length, 0.0, 1.0)
            rate *= 0.5 * (1.0 + jnp.cos(math.pi * share))
        return rate * recipe.lr

    return schedule


def decays(path: str) -> bool:
    """Whether weight decay applies: to kernels alone; not to biases, norms, position tables, tokens, LoRA's factors."""
    return path.rpartition("/")[2] == "kernel"


def layer_rate(config: SamConfig, recipe: Recipe, path: str) -> float | np.ndarray:
    """What the learning rate is multiplied by: layer_decay to the power of the layers above (as in ViTDet).

    The neck and everything after the encoder have 1, the last of n blocks layer_decay, the patches and the position
    table layer_decay^(n + 1). TinyViT's blocks are counted through its stages; the convolutions between two stages
    belong to the block before. For stacked blocks it is an array over their leading axes.
    """
    path = path.removeprefix("lora/")
    if not path.startswith("image_encoder/") or path.startswith("image_encoder/neck"):
        return 1.0
    vit = isinstance(config.encoder, ViT)
    depth = config.encoder.depth if vit else sum(config.encoder.depths)
    found = re.match(r"image_encoder/(?:blocks_(\d+)|stages_(\d+)_(?:blocks_(\d+)|downsample)|groups/(\w+))/", path)
    if not found:
        return recipe.layer_decay ** (depth + 1)
    block, stage, stage_block, part = found.groups()
    if part:
        groups, size = group_shape(config.encoder)
        number = np.arange(depth).reshape(groups, size)
        number = number[:, -1] if part == "global" else number[:, :-1]
        return np.float32(recipe.layer_decay) ** (depth - number).astype(np.float32)
    if stage:
        before = sum(config.encoder.depths[: int(stage)])
        block = before + int(stage_block) if stage_block else before + config.encoder.depths[int(stage)] - 1
    return recipe.layer_decay ** (depth - int(block))


def make_optimiser(config: SamConfig, recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """AdamW for trees of the model's paths; `update(gradients, state, params, step=step)`.

    The rate follows from the step that is given, not from a count of its own. Weight decay is decoupled, and
    multiplied by the rate as in torch.optim.AdamW.
    """
    schedule = make_schedule(recipe)

    def descend(updates: dict, state, params: dict | None = None, *, step: Array, **_):
        rate = schedule(step)

        def one(path: str, update: Array, value: Array) -> Array:
            if decays(path):
                update = update + recipe.weight_decay * value
            factor = np.asarray(layer_rate(config, recipe, path), np.float32)
            return -rate * factor.reshape(factor.shape + (1,) * (value.ndim - factor.ndim)) * update

        values = flatten_dict(params, sep="/")
        flat = {path: one(path, update, values[path]) for path, update in flatten_dict(updates, sep="/").items()}
        return unflatten_dict(flat, sep="/"), state

    chain = optax.chain(
        *([optax.clip_by_global_norm(recipe.clip)] if recipe.clip else []),
        optax.scale_by_adam(*recipe.betas),
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), descend))

    def update(gradients: dict, state, params: dict, *, step: Array):
        with jax.numpy_dtype_promotion("standard"):  # optax takes powers of its count
            return chain.update(gradients, state, params, step=step)

    return optax.GradientTransformationExtraArgs(chain.init, update)


def finite(*trees) -> Array:
    """Whether all numbers are: bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).all()
