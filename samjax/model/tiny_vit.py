"""TinyViT, the light encoder of MobileSAM and LiteMedSAM (Zhang et al., 2023; Wu et al., 2022).

Four stages at 1/4, 1/8, 1/16 and 1/16 of the input (the last one keeps its resolution): the first convolutional, the
others windowed attention with a depthwise convolution between attention and MLP.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax

from samjax.config import SamConfig
from samjax.model.image_encoder import Neck, drop_path
from samjax.model.layers import (
    STRIP,
    Dense,
    LayerNorm,
    Weights,
    conv,
    depthwise_conv,
    gelu,
    init_conv,
    matmul,
    mlp,
    strip_rows,
)
from samjax.model.windows import merge, partition

EPS = 1e-5  # of its LayerNorms and BatchNorms


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm, or the two folded into one convolution with a bias. Always in float32.

    Folded, the parameters are `kernel` and `bias`. Otherwise `kernel` and `norm_{scale,bias,mean,var}`, where mean
    and var are the stored statistics: buffers that no gradient reaches. `samjax.model.fold.fold_batch_norm` goes
    from the second form to the first.

    The convolutions see the picture itself and have no norm that would even out the errors of bfloat16: with them in
    float32 (a sixth of the operations), bfloat16 masks stay within 0.98 IoU of float32 ones, otherwise not.
    """

    config: SamConfig
    features: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def weights(self, inputs: int) -> tuple[Array, Array]:
        """Kernel (s, s, inputs, features) and bias (features,), BatchNorm folded in."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (self.features,)
        kernel = self.param("kernel", init_conv, (self.size, self.size, inputs, self.features))
        if self.config.encoder.fold_batch_norm:
            return kernel, self.param("bias", zeros, shape)
        scale, bias = self.param("norm_scale", ones, shape), self.param("norm_bias", zeros, shape)
        mean = lax.stop_gradient(self.param("norm_mean", zeros, shape))
        var = lax.stop_gradient(self.param("norm_var", ones, shape))
        factor = scale * lax.rsqrt(var + EPS)
        return kernel * factor, bias - mean * factor

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.weights(1 if self.depthwise else x.shape[-1])
        if self.size == 1:
            return exact(x, kernel, bias)
        with jax.default_matmul_precision("highest"):
            return (depthwise_conv if self.depthwise else conv)(x, kernel, self.stride) + bias


def exact(x: Array, kernel: Array, bias: Array) -> Array:
    """A 1 x 1 convolution, multiplied in float32 on every platform."""
    with jax.default_matmul_precision("highest"):
        return matmul(x, kernel[0, 0], "float32") + bias


class MBConv(nn.Module):
    """Inverted bottleneck; the activation follows the residual sum."""

    config: SamConfig
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, rate: Array | float = 0.0) -> Array:
        c = x.shape[-1]
        weights = (ConvNorm(self.config, 4 * c, name="conv1").weights(c),
                   ConvNorm(self.config, 4 * c, 3, depthwise=True, name="conv2").weights(1),
                   ConvNorm(self.config, c, name="conv3").weights(4 * c))
        y = bottleneck(x, weights)
        return gelu(x + (drop_path(y, rate, self.make_rng("dropout")) if self.train else y))


def bottleneck(x: Array, weights: tuple[tuple[Array, Array], ...]) -> Array:
    """Widen, depthwise 3 x 3, narrow: (b, h, w, c) -> (b, h, w, c).

    The hidden layer, four times as wide at the finest resolution, is the largest array of the whole encoder; on a CPU
    it is made some rows at a time, so that it stays in the cache.
    """
    widen, depthwise, narrow = weights
    h, w = x.shape[1:3]
    rows = strip_rows(h, w, positions=4 * STRIP)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))

    def strip(start: Array | int, height: int) -> Array:
        """Rows start .. start + height of the result, from those rows of x and one more above and below."""
        part = lax.dynamic_slice_in_dim(padded, start, height + 2, axis=1)
        row = start - 1 + jnp.arange(height + 2)
        inside = ((row >= 0) & (row < h))[:, None, None]  # beyond the picture the hidden layer is zero
        hidden = jnp.where(inside, gelu(exact(part, *widen)), 0.0)
        kernel, bias = depthwise
        hidden = gelu(depthwise_conv(hidden, kernel, pad_rows=False) + bias)
        return exact(hidden, *narrow)

    def strips():
        out = lax.map(lambda i: strip(i * rows, rows), jnp.arange(h // rows))
        return rearrange(out, "i b y w c -> b (i y) w c")

    return lax.platform_dependent(cpu=strips, default=lambda: strip(0, h))


class Downsample(nn.Module):
    """Between stages: widens, and halves the grid unless `stride` is 1."""

    config: SamConfig
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = gelu(ConvNorm(self.config, self.features, name="conv1")(x))
        x = gelu(ConvNorm(self.config, self.features, 3, self.stride, depthwise=True, name="conv2")(x))
        return ConvNorm(self.config, self.features, name="conv3")(x)


class WindowAttention(nn.Module):
    """Attention within windows with a learned bias per |dy|, |dx|. (b, h, w, c) -> (b, h, w, c).

    The projection holds [q | k | v] head by head. The windows' padding precedes the norm here (in the ViT it follows):
    a padded token holds the projection of the norm's bias.
    """

    heads: int
    window: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape[1:]
        norm, project = LayerNorm(EPS, name="norm"), Dense(3 * c, self.dtype, name="qkv")
        qkv = partition(project(norm(x)).astype(self.dtype), self.window,
                        project(norm(jnp.zeros(c))).astype(self.dtype))
        q, k, v = rearrange(qkv, "b y x (k s d) -> s k b (y x) d", s=3, k=self.heads)
        table = self.param("bias", nn.initializers.zeros, (self.heads, self.window**2))
        scale = (c // self.heads) ** -0.5
        bias = table[:, offsets(self.window)]
        by_head = lambda *heads: lax.map(lambda a: window_attend(*a), heads)  # to stay in a cache
        out = lax.platform_dependent(q * scale, k, v, bias, cpu=by_head, default=jax.vmap(window_attend))
        out = rearrange(out, "k b (y x) d -> b y x (k d)", y=self.window)
        return Dense(c, self.dtype, name="proj")(merge(out, h, w))


def window_attend(q: Array, k: Array, v: Array, bias: Array) -> Array:
    """One head: q, k, v (b, n, d), bias (n, n) -> (b, n, d)."""
    scores = jnp.einsum("bqd,bpd->bqp", q, k, preferred_element_type=jnp.float32) + bias
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bqp,bpd->bqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)


def offsets(window: int) -> np.ndarray:
    """(n, n) index into a bias table: |dy| * window + |dx| for each pair of the window's n = window² cells."""
    y, x = np.divmod(np.arange(window * window), window)
    return np.abs(y[:, None] - y) * window + np.abs(x[:, None] - x)


class TinyBlock(nn.Module):
    """Window attention, a depthwise convolution without residual, an MLP."""

    config: SamConfig
    heads: int
    window: int
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, rate: Array | float = 0.0) -> Array:
        config = self.config
        c = x.shape[-1]
        x = x + self.drop(WindowAttention(self.heads, self.window, config.dtype, name="attn")(x), rate)
        x = ConvNorm(config, c, 3, depthwise=True, name="local_conv")(x)
        y = LayerNorm(EPS, name="mlp_norm")(x)
        hidden = config.encoder.mlp_ratio * c
        y = mlp(y, Weights(hidden, name="mlp_in")(c), Weights(c, name="mlp_out")(hidden), config.dtype)
        return x + self.drop(y, rate)

    def drop(self, y: Array, rate: Array | float) -> Array:
        return drop_path(y, rate, self.make_rng("dropout")) if self.train else y


class TinyViT(nn.Module):
    """Image to features: (b, H, W, in_channels) normalised pixels -> (b, h, w, 256) float32."""

    config: SamConfig
    train: bool = False

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config, tiny = self.config, self.config.encoder
        size, stride = (3, 2) if tiny.patch_stride == 4 else (1, 1)
        x = gelu(ConvNorm(config, tiny.widths[0] // 2, size, stride, name="patch_embed_0")(pixels))
        x = ConvNorm(config, tiny.widths[0], size, stride, name="patch_embed_1")(x)
        rates = iter(jnp.linspace(0.0, tiny.drop_path, sum(tiny.depths)))
        stages = len(tiny.depths)
        for i in range(stages):
            for j in range(tiny.depths[i]):
                name = f"stages_{i}_blocks_{j}"
                if i == 0:
                    x = self.remat(MBConv)(config, self.train, name=name)(x, next(rates))
                else:
                    block = self.remat(TinyBlock)
                    x = block(config, tiny.heads[i], tiny.windows[i], self.train, name=name)(x, next(rates))
            if i < stages - 1:
                stride = 1 if i == stages - 2 else 2
                x = Downsample(config, tiny.widths[i + 1], stride, name=f"stages_{i}_downsample")(x)
        return Neck(config.channels, config.dtype, name="neck")(x)

    def remat(self, block: type[nn.Module]) -> type[nn.Module]:
        return nn.remat(block) if self.config.encoder.remat else block
