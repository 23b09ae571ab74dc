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


def dense(features: int, dtype: str, name: str, use_bias: bool = True) -> nn.Dense:
    """A linear layer that computes in `dtype` and keeps its parameters in float32."""
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=init_kernel, name=name)


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Two-pass LayerNorm in float32 (the one-pass variance loses digits when the mean is large)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + eps) * scale + bias


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32, returned in `dtype`.

    SAM mixes two epsilons: 1e-6 in the ViT and in every channel norm, 1e-5 in the decoder and in TinyViT.
    """

    eps: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps).astype(self.dtype)


class Conv(nn.Module):
    """A square convolution with symmetric padding, in the form that is fast on the platform at hand.

    x (b, h, w, c) -> (b, h / stride, w / stride, features); kernel (s, s, c, features).
    """

    features: int
    size: int
    stride: int = 1
    use_bias: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", init_conv, (self.size, self.size, x.shape[-1], self.features))
        x = conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


def conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of (b, h, w, c) with (s, s, c, features), padded by s // 2 on each side as PyTorch's does."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def depthwise_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Depthwise convolution of (b, h, w, c) with (s, s, 1, c), padded by s // 2.

    XLA's grouped convolution is many times slower on a CPU than a sum of shifted products, so each platform gets
    its own form; the choice is made where the program is lowered, so that exported programs choose rightly too.
    """
    return lax.platform_dependent(x, kernel, cpu=lambda x, k: _shifted(x, k, stride),
                                  default=lambda x, k: _grouped(x, k, stride))


def _grouped(x: Array, kernel: Array, stride: int) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                    feature_group_count=x.shape[-1])


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
