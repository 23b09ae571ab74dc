"""The model as three pure functions: `init`, `encode_image`, `decode_masks`.

Parameters are one tree of float32 arrays with three branches (image_encoder, prompt_encoder, mask_decoder), always an
argument. `config` is hashable: pass it as a static argument of `jit`, or close over it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from samjax.config import SamConfig, ViT
from samjax.model.image_encoder import ImageEncoder
from samjax.model.mask_decoder import MaskDecoder
from samjax.model.prompt_encoder import PromptEncoder
from samjax.model.tiny_vit import TinyViT


class Prompts(NamedTuple):
    """Prompts for b images, n objects in each, t slots for each object.

    Attributes:
        points: (b, n, t, 2) float32, x before y, in pixels of the encoder's input (not of the photograph).
        labels: (b, n, t) int32: 0 background, 1 foreground, 2 and 3 a box's top left and bottom right corners,
            -1 SAM's "not a point" token (official SAM appends one wherever no box is given), -2 an empty slot.
            Empty slots are masked out of every attention: they never change a result.
        mask_logits: (b, n, H, W) float32, H x W = config.mask_size: a previous answer's logits; or None.
        has_mask: (b, n) bool: where mask_logits counts; None together with mask_logits.
    """

    points: Array
    labels: Array
    mask_logits: Array | None = None
    has_mask: Array | None = None


class Masks(NamedTuple):
    """m masks for each prompt: logits (b, n, m, H, W) float32, foreground above 0; iou (b, n, m) predicted IoU."""

    logits: Array
    iou: Array


def init(config: SamConfig, key: Array) -> dict:
    """Random parameters. For their shapes alone: `jax.eval_shape(partial(init, config), jax.random.key(0))`."""
    keys = jax.random.split(key, 3)
    h, w = config.image_size
    grid_h, grid_w = config.grid
    mask = jnp.zeros((1, 1, *config.mask_size))
    slots = jnp.zeros((1, 1, 1), jnp.int32)
    features = jnp.zeros((1, 1, grid_h, grid_w, config.channels))
    tokens, code = jnp.zeros((1, 1, 1, config.channels)), features[0, 0]
    pixels = jnp.zeros((1, h, w, config.in_channels))
    return {
        "image_encoder": _encoder(config).init(keys[0], pixels)["params"],
        "prompt_encoder": PromptEncoder(config).init(keys[1], jnp.zeros((1, 1, 1, 2)), slots, mask,
                                                     jnp.zeros((1, 1), bool))["params"],
        "mask_decoder": MaskDecoder(config).init(keys[2], features, code, tokens, slots == 0)["params"],
    }


def encode_image(config: SamConfig, params: dict, pixels: Array, *, key: Array | None = None) -> Array:
    """Features of images.

    Args:
        config: static.
        params: the whole parameter tree, or one with the branch image_encoder.
        pixels: (b, H, W, in_channels) float, normalised and zero-padded below and to the right
            (`samjax.image.normalise`); H x W = config.image_size.
        key: a PRNG key turns training on (drop path); without one the function is deterministic.

    Returns:
        (b, h, w, 256) float32, h x w = config.grid.
    """
    if pixels.shape[1:] != (*config.image_size, config.in_channels):
        raise ValueError(f"pixels {pixels.shape} do not match (b, {config.image_size[0]}, {config.image_size[1]}, "
                         f"{config.in_channels}) of the config")
    with _precision(config):
        return _encoder(config, key is not None).apply({"params": params["image_encoder"]}, pixels, rngs=_rngs(key))


def decode_masks(config: SamConfig, params: dict, features: Array, prompts: Prompts, *,
                 multimask: bool | None = None, key: Array | None = None) -> Masks:
    """Masks for prompts, every image with each of its prompts.

    Args:
        config: static.
        params: the whole parameter tree, or one with the branches prompt_encoder and mask_decoder.
        features: (b, h, w, 256) from `encode_image`.
        prompts: see `Prompts`.
        multimask: None gives all 4 masks: the single-mask token's first, then the three alternatives; True the three
            alternatives (best for ambiguous prompts: one point), False the single one (best for several points, a
            box, or a mask fed back).
        key: a PRNG key turns training on (decoder dropout).

    Returns:
        `Masks` with m = 4, 3 or 1.
    """
    with _precision(config):
        code = PromptEncoder(config).apply({"params": params["prompt_encoder"]}, method="positions")
        decode = partial(_decode, config, params, features, code, key)
        n = prompts.labels.shape[1]
        if isinstance(n, int):
            size = n if key is not None else _chunk(config, n)
            masks = decode(prompts) if size == n else _in_chunks(decode, prompts, size)
        else:  # a symbol, in a program that is exported: each of its platforms gets its own form
            masks = lax.platform_dependent(prompts, cpu=partial(_in_chunks, decode, size=1), default=decode)
    chosen = {None: slice(None), True: slice(1, None), False: slice(0, 1)}[multimask]
    return Masks(masks.logits[:, :, chosen], masks.iou[:, :, chosen])


def _decode(config, params, features, code, key, prompts) -> Masks:
    encoder, variables = PromptEncoder(config), {"params": params["prompt_encoder"]}
    tokens = encoder.apply(variables, prompts.points, prompts.labels, method="sparse")
    dense = encoder.apply(variables, prompts.mask_logits, prompts.has_mask, method="dense")
    valid = (prompts.labels >= -1) & (prompts.labels <= 3)
    decoder = MaskDecoder(config, key is not None)
    return Masks(*decoder.apply({"params": params["mask_decoder"]}, features[:, None] + dense, code, tokens, valid,
                                rngs=_rngs(key)))


def _in_chunks(decode, prompts: Prompts, size: int) -> Masks:
    """The same, `size` prompts of each image at a time, so that a chunk's arrays stay in a CPU's cache."""
    n = prompts.labels.shape[1]
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], n // size, size, *x.shape[2:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], n, *x.shape[3:])
    return jax.tree.map(join, lax.map(decode, jax.tree.map(split, prompts)))


def _chunk(config: SamConfig, n: int) -> int:
    """How many prompts to decode at a time: a divisor of n. One a step suits a CPU; other devices want them all."""
    limit = config.decode_chunk or (1 if jax.default_backend() == "cpu" else n)
    return max(d for d in range(1, min(limit, n) + 1) if n % d == 0)


def _encoder(config: SamConfig, train: bool = False):
    return (ImageEncoder if isinstance(config.encoder, ViT) else TinyViT)(config, train)


def _precision(config: SamConfig):
    """float32 means float32: TPUs and GPUs would otherwise multiply float32 matrices in shorter formats."""
    return jax.default_matmul_precision("highest" if config.dtype == "float32" else "default")


def _rngs(key: Array | None) -> dict | None:
    return None if key is None else {"dropout": key}
