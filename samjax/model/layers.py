"""The few layers that every part of the model shares, as thin Linen modules over plain functions.

Axis letters throughout the package: b images, n prompts (objects), t tokens, m masks, h w grid, c channels, k heads.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

# SAM's own initialisers were never published; these are the customary ones of vision transformers.
init_kernel = nn.initializers.truncated_normal(0.02)
init_conv = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def gelu(x: Array) -> Array:
    """The exact (erf) GELU; the tanh form differs in the fourth digit."""
    return jax.nn.gelu(x, approximate=False)


class Dense(nn.Module):
    """A linear layer that multiplies in `dtype`, and accumulates and returns float32.

    Whoever takes the result casts it to what it multiplies in: between the two, activations and residual sums keep
    float32's digits at no cost, since compilers fuse them into the product.
    """

    features: int
    dtype: str = "float32"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", init_kernel, (x.shape[-1], self.features))
        x = matmul(x, kernel, self.dtype)
        return x + self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else x


def matmul(x: Array, kernel: Array, dtype: str) -> Array:
    """x @ kernel, multiplied in `dtype`, accumulated and returned in float32."""
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Two-pass LayerNorm in float32 (the one-pass variance loses digits when the mean is large)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + eps) * scale + bias


class LayerNorm(nn.Module):
    """LayerNorm over the last axis in float32.

    SAM mixes two epsilons: 1e-6 in the ViT and in every channel norm, 1e-5 in the decoder and in TinyViT.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


def conv(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """Convolution of (b, h, w, c) with (s, s, c / groups, features), padded by s // 2 on each side."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2, feature_group_count=groups,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def depthwise_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Depthwise convolution of (b, h, w, c) with (s, s, 1, c), padded by s // 2.

    XLA's grouped convolution is many times slower on a CPU than a sum of shifted products, so each platform gets
    its own form; the choice is made where the program is lowered, so that exported programs choose rightly too.
    """
    return lax.platform_dependent(x, kernel, cpu=lambda x, k: _shifted(x, k, stride),
                                  default=lambda x, k: conv(x, k, stride, groups=x.shape[-1]))


def _shifted(x: Array, kernel: Array, stride: int) -> Array:
    size = kernel.shape[0]
    h, w = ((side - 1) // stride + 1 for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    total = 0.0
    for dy in range(size):
        for dx in range(size):
            rows = slice(dy, dy + (h - 1) * stride + 1, stride)
            columns = slice(dx, dx + (w - 1) * stride + 1, stride)
            total = total + padded[:, rows, columns] * kernel[dy, dx, 0]
    return total
