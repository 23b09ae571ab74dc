"""Weights as int8 with float32 scales: which ones, how fine the scales, and the arithmetic.

A weight is values * scale. Scales are symmetric (0 stays 0); each belongs to one output of a linear map and to all of
its inputs, or to 32 of them where accuracy asks for it (experiments/quantised.py). JAX is not imported here: the
arithmetic is that of the arrays it is given.
"""

import re

import numpy as np

LIMIT = 127  # -128 stays unused, so that a weight and its negative have the same digits
LEAST = LIMIT * float(np.finfo(np.float32).tiny)  # weights that are all below it count as zeros
ALL, FEW = 1 << 30, 32  # inputs that share a scale, at most

# Everything else stays float32: what is small (norms, biases, position tables, the prompts' vectors); what is near the
# picture (a ViT's patches; TinyViT's convolutions and first two stages of attention, a quarter of its weights), whose
# errors all later layers magnify: with them in int8 some masks of LiteMedSAM would fall to 0.80 of IoU; and what makes
# the masks in the decoder (its attention to the image, its upscaling and hypernetworks: 0.96 of ViT-H's).
RULES = tuple((re.compile(pattern), group) for pattern, group in (
    (r"image_encoder/(groups/|blocks_\d+/).*(qkv|proj|mlp_in|mlp_out)/kernel", ALL),  # ViT, blocks stacked or not
    (r"image_encoder/stages_3_.*(qkv|proj|mlp_in|mlp_out)/kernel", FEW),  # TinyViT
    (r"image_encoder/neck/conv[12]/kernel", FEW),
    (r"mask_decoder/(blocks_\d+/(self_attn|mlp)|iou_head)/\w+/kernel", FEW),
))


def group_of(path: str) -> int | None:
    """How many inputs share a scale, at most; None for a parameter that stays float32.

    path: such as image_encoder/blocks_0/attn/qkv/kernel.
    """
    return next((group for pattern, group in RULES if pattern.fullmatch(path)), None)


def encode(weights, group: int):
    """(values int8, scale float32) of finite float32 weights (..., inputs, outputs), NumPy's or JAX's.

    values have the shape of the weights, scale has (..., inputs / g, outputs), g the largest divisor of the inputs
    that is not above `group`. Each weight is met to half its scale, zero exactly. Where all are zeros the scale is 1.
    """
    xp = weights.__array_namespace__()
    *stack, groups, outputs = scale_shape(weights.shape, group)
    grouped = weights.reshape(*stack, groups, -1, outputs)
    largest = xp.max(xp.abs(grouped), axis=-2, keepdims=True)
    scale = xp.where(largest >= LEAST, largest / LIMIT, 1.0).astype(xp.float32)
    values = xp.clip(xp.round(grouped / scale), -LIMIT, LIMIT).astype(xp.int8)
    return values.reshape(weights.shape), scale[..., 0, :]


def decode(values, scale):
    """The float32 weights that int8 values and their scale stand for."""
    grouped = values.reshape(*scale.shape[:-1], -1, scale.shape[-1])
    return (grouped.astype(scale.dtype) * scale[..., None, :]).reshape(values.shape)


def scale_shape(shape: tuple[int, ...], group: int) -> tuple[int, ...]:
    """Of the scale that belongs to weights (..., inputs, outputs)."""
    *stack, inputs, outputs = shape
    size = max(d for d in range(1, min(group, inputs) + 1) if inputs % d == 0)
    return *stack, inputs // size, outputs
