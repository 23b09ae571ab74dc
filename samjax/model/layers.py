"""The few layers that every part of the model shares, as thin Linen modules over plain functions.

Axis letters throughout the package: b images, n prompts (objects), t tokens, m masks, h w grid, c channels, k heads.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

# SAM's own initialisers were never published; these are the customary ones of vision transformers.
init_kernel = nn.initializers.truncated_normal(0.02)
init_conv = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def gelu(x: Array) -> Array:
    """The exact (erf) GELU; the tanh form differs in the fourth digit."""
    return jax.nn.gelu(x, approximate=False)


class Weights(nn.Module):
    """The kernel (inputs, features) and bias of a linear map, for the caller to contract as it likes."""

    features: int

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", init_kernel, (inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Dense(nn.Module):
    """A linear layer that multiplies in `dtype` (see `matmul`), adds its bias in float32, and returns float32.

    Whoever takes the result casts it to what it multiplies in: between the two, activations and residual sums keep
    float32's digits at no cost, since compilers fuse what is done between products.
    """

    features: int
    dtype: str = "float32"
    use_bias: bool = True

    @nn.compact
    def weights(self, inputs: int) -> tuple[Array, Array | None]:
        """Kernel (inputs, features) and bias; a method of its own, so that an interceptor can change them."""
        kernel = self.param("kernel", init_kernel, (inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.weights(x.shape[-1])
        x = matmul(x, kernel, self.dtype)
        return x if bias is None else x + bias


def mlp(x: Array, first: tuple[Array, Array], second: tuple[Array, Array], dtype: str) -> Array:
    """GELU between two linear maps, (kernel, bias) each: (b, h, w, c) -> (b, h, w, c)."""
    def f(x):
        hidden = gelu(matmul(x, first[0], dtype) + first[1])
        return matmul(hidden, second[0], dtype) + second[1]

    return in_strips(f, x)


STRIP = 512  # positions a strip: what a linear map widens them to stays in the cache of a CPU's core


def in_strips(f, x: Array) -> Array:
    """f(x) for an f that treats every position of x (b, h, w, c) alone; on a CPU some rows at a time.

    A CPU is faster when it need not write the hidden layer of the whole grid to memory. The images stay a batch
    dimension of every step.
    """
    rows = strip_rows(*x.shape[1:3])
    if rows == x.shape[1]:
        return f(x)

    def strips(x):
        out = lax.map(f, rearrange(x, "b (i y) w c -> i b y w c", y=rows))
        return rearrange(out, "i b y w c -> b (i y) w c")

    return lax.platform_dependent(x, cpu=strips, default=f)


def strip_rows(h: int, w: int, positions: int = STRIP) -> int:
    """How many of h rows make a strip: a divisor of h."""
    return max(r for r in range(1, h + 1) if h % r == 0 and (r == 1 or r * w <= positions))


PRODUCT = "product"  # the name, for rematerialisation, of what linear maps give


def matmul(x: Array, kernel: Array, dtype: str) -> Array:
    """x @ kernel, multiplied in `dtype`, accumulated in float32, rounded to `dtype`; returned as float32.

    So it is that a product is written to memory in half the bytes, and its gradient is multiplied in `dtype`, too.
    """
    product = jnp.matmul(x.astype(dtype), kernel.astype(dtype))
    return checkpoint_name(product, PRODUCT).astype(jnp.float32)


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Two-pass LayerNorm in float32 (the one-pass variance loses digits when the mean is large)."""
    shape = x.shape
    x = x.astype(jnp.float32).reshape(-1, shape[-1])  # a CPU sums up the gradients of (1, p, c) many times slower
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * lax.rsqrt(variance + eps) * scale + bias).reshape(shape)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis in float32.

    SAM mixes two epsilons: 1e-6 in the ViT and in every channel norm, 1e-5 in the decoder and in TinyViT.
    """

    eps: float

    @nn.compact
    def weights(self, features: int) -> tuple[Array, Array]:
        """Scale and bias (features,), for callers that norm by themselves."""
        scale = self.param("scale", nn.initializers.ones, (features,))
        return scale, self.param("bias", nn.initializers.zeros, (features,))

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, *self.weights(x.shape[-1]), self.eps)


def conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of (b, h, w, c) with (s, s, c, features), padded by s // 2 on each side."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def depthwise_conv(x: Array, kernel: Array, stride: int = 1, pad_rows: bool = True) -> Array:
    """Depthwise convolution of (b, h, w, c) with (s, s, 1, c), padded by s // 2 (on all sides, or left and right only).

    XLA's grouped convolution is many times slower on a CPU than a sum of shifted products. On an H200 a training step
    of MobileSAM took 1.1 s with cuDNN's, 0.11 s with shifted products. So each platform gets its own form; the choice
    is made where the program is lowered, so that exported programs choose rightly too.
    """
    pad = kernel.shape[0] // 2
    x = jnp.pad(x, ((0, 0), (pad * pad_rows,) * 2, (pad, pad), (0, 0)))
    shifted = partial(shifted_conv, stride=stride)
    return lax.platform_dependent(x, kernel, cpu=shifted, cuda=shifted, default=partial(grouped_conv, stride=stride))


def grouped_conv(x: Array, kernel: Array, stride: int) -> Array:
    """Depthwise convolution without padding, as XLA knows it."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", feature_group_count=x.shape[-1],
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def shifted_conv(x: Array, kernel: Array, stride: int) -> Array:
    """The same as a sum of shifted products."""
    x = lax.optimization_barrier(x)  # or whatever makes x would be fused into, and computed for, each of the shifts
    size = kernel.shape[0]
    h, w = ((side - size) // stride + 1 for side in x.shape[1:3])
    total = 0.0
    for dy in range(size):
        for dx in range(size):
            rows = slice(dy, dy + (h - 1) * stride + 1, stride)
            columns = slice(dx, dx + (w - 1) * stride + 1, stride)
            total = total + x[:, rows, columns] * kernel[dy, dx, 0]
    return total
