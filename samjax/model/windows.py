"""Cutting a grid into square windows and putting it together again."""

import jax.numpy as jnp
from einops import rearrange
from jax import Array


def partition(x: Array, window: int, fill: Array) -> Array:
    """(b, h, w, c) -> (b * windows, window, window, c), padded below and to the right to whole windows with `fill` (c).

    The padding takes part in attention as ordinary tokens: official behaviour, which the weights were trained with.
    What those tokens hold is the same everywhere, so it is computed once and filled in after the projections.
    """
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    inside = (jnp.arange(x.shape[1]) < h)[:, None] & (jnp.arange(x.shape[2]) < w)
    x = jnp.where(inside[..., None], x, fill)
    return rearrange(x, "b (i y) (j x) c -> (b i j) y x c", y=window, x=window)


def merge(x: Array, h: int, w: int) -> Array:
    """The inverse of `partition`: (b * windows, window, window, c) -> (b, h, w, c), padding cut off."""
    window = x.shape[1]
    x = rearrange(x, "(b i j) y x c -> b (i y) (j x) c", i=-(-h // window), j=-(-w // window))
    return x[:, :h, :w]
