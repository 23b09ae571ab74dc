"""Prompts to vectors (Segment Anything, appendix A, "Prompt encoder").

A prompt is a row of slots, each a position with a label: 0 background point, 1 foreground point, 2 and 3 a box's top
left and bottom right corners, -1 SAM's learned "not a point" token, anything else an empty slot.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax

from samjax.config import SamConfig
from samjax.model.layers import Dense, LayerNorm, gelu, init_conv, matmul

EPS = 1e-6
EMPTY = -2


class PromptEncoder(nn.Module):
    """Holds the learned vectors; its methods are `sparse`, `dense` and `positions`."""

    config: SamConfig

    def setup(self):
        config, normal = self.config, nn.initializers.normal
        self.gaussian = self.param("gaussian", normal(1.0), (2, config.channels // 2))  # a buffer: never trained
        self.labels = [self.param(f"label_{i}", normal(1.0), (config.channels,)) for i in range(4)]
        self.not_a_point = self.param("not_a_point", normal(1.0), (config.channels,))
        self.no_mask = self.param("no_mask", normal(1.0), (config.channels,))
        self.mask_downscale = MaskDownscale(config.channels, config.dtype)

    def __call__(self, points: Array, labels: Array, mask_logits: Array | None, has_mask: Array | None) -> tuple:
        """All three results at once (this is also what initialises every parameter)."""
        return self.sparse(points, labels), self.dense(mask_logits, has_mask), self.positions()

    def sparse(self, points: Array, labels: Array) -> Array:
        """Slots to tokens: (b, n, t, 2) input pixels, x first, and (b, n, t) labels -> (b, n, t, c)."""
        h, w = self.config.image_size
        code = fourier_code((points + 0.5) / jnp.array([w, h], points.dtype), lax.stop_gradient(self.gaussian))
        label = labels[..., None]
        learned = jnp.select([label == i for i in range(4)], self.labels, default=0.0)
        token = jnp.where((label >= 0) & (label <= 3), code + learned, 0.0)
        return jnp.where(label == -1, self.not_a_point, token)

    def dense(self, mask_logits: Array | None, has_mask: Array | None) -> Array:
        """What is added to the features: (b, n, H, W) logits and (b, n) bool -> (b, n, h, w, c).

        Without any mask (None, or has_mask all False: then the convolutions are not run) it is the learned
        "no mask" vector, broadcast; of shape (1, 1, 1, 1, c) when mask_logits is None.
        """
        none = self.no_mask.reshape(1, 1, 1, 1, -1)
        if mask_logits is None:
            return none
        if self.is_initializing():
            return self.mask_downscale(mask_logits)
        b, n = has_mask.shape
        flags = has_mask[..., None, None, None]
        return nn.cond(jnp.any(has_mask),
                       lambda module: jnp.where(flags, module.mask_downscale(mask_logits), none),
                       lambda module: jnp.broadcast_to(none, (b, n, *module.config.grid, none.shape[-1])), self)

    def positions(self) -> Array:
        """The position code of every cell of the feature grid, at the cell's centre: (h, w, c)."""
        h, w = self.config.grid
        centres = lambda size: (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
        y, x = jnp.meshgrid(centres(h), centres(w), indexing="ij")
        return fourier_code(jnp.stack([x, y], -1), lax.stop_gradient(self.gaussian))


def fourier_code(xy: Array, gaussian: Array) -> Array:
    """Random Fourier features (Tancik et al., 2020): (..., 2) in [0, 1], (2, c / 2) -> (..., c).

    Written as products and a sum, not as a matrix product, which some devices would round to bfloat16.
    """
    xy = 2.0 * xy - 1.0
    angle = 2.0 * np.pi * (xy[..., :1] * gaussian[0] + xy[..., 1:] * gaussian[1])
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class MaskDownscale(nn.Module):
    """Mask logits to the feature grid: (b, n, 4 h, 4 w) -> (b, n, h, w, c)."""

    channels: int
    dtype: str
    hidden: int = 16

    @nn.compact
    def __call__(self, logits: Array) -> Array:
        x = logits[..., None]
        x = gelu(LayerNorm(EPS, name="norm1")(HalvingConv(self.hidden // 4, self.dtype, name="conv1")(x)))
        x = gelu(LayerNorm(EPS, name="norm2")(HalvingConv(self.hidden, self.dtype, name="conv2")(x)))
        return Dense(self.channels, self.dtype, name="conv3")(x)


class HalvingConv(nn.Module):
    """A 2 x 2 convolution of stride 2: (..., 2 h, 2 w, c) -> (..., h, w, features)."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", init_conv, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = rearrange(x, "... (h y) (w x) c -> ... h w (y x c)", y=2, x=2)
        return matmul(x, rearrange(kernel, "y x c d -> (y x c) d"), self.dtype) + bias
