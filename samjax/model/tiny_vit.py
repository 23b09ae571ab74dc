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
from samjax.model.layers import Dense, LayerNorm, conv, depthwise_conv, gelu, init_conv, matmul
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
    def __call__(self, x: Array) -> Array:
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", init_conv, (self.size, self.size, inputs, self.features))
        with jax.default_matmul_precision("highest"):
            if self.size == 1:
                x = matmul(x, kernel[0, 0], "float32")
            else:
                x = (depthwise_conv if self.depthwise else conv)(x, kernel, self.stride)
        if self.config.encoder.fold_batch_norm:
            return x + self.param("bias", nn.initializers.zeros, (self.features,))
        return self.batch_norm(x)

    def batch_norm(self, x: Array) -> Array:
        """BatchNorm with the stored statistics."""
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, (self.features,)
        scale, bias = self.param("norm_scale", ones, shape), self.param("norm_bias", zeros, shape)
        mean = lax.stop_gradient(self.param("norm_mean", zeros, shape))
        var = lax.stop_gradient(self.param("norm_var", ones, shape))
        return (x - mean) * (scale * lax.rsqrt(var + EPS)) + bias


class MBConv(nn.Module):
    """Inverted bottleneck; the activation follows the residual sum."""

    config: SamConfig
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, rate: Array | float = 0.0) -> Array:
        c = x.shape[-1]
        y = gelu(ConvNorm(self.config, 4 * c, name="conv1")(x))
        y = gelu(ConvNorm(self.config, 4 * c, 3, depthwise=True, name="conv2")(y))
        y = ConvNorm(self.config, c, name="conv3")(y)
        return gelu(x + (drop_path(y, rate, self.make_rng("dropout")) if self.train else y))


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
    """Attention within windows with a learned bias per |dy|, |dx|. (b, y, x, c) -> (b, y, x, c).

    The projection holds [q | k | v] head by head.
    """

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y, c = x.shape[1], x.shape[-1]
        d = c // self.heads
        x = LayerNorm(EPS, name="norm")(rearrange(x, "b y x c -> b (y x) c"))
        qkv = Dense(3 * c, self.dtype, name="qkv")(x).astype(self.dtype)
        q, k, v = rearrange(qkv, "b n (k s d) -> s k b n d", s=3, k=self.heads)
        table = self.param("bias", nn.initializers.zeros, (self.heads, y * y))
        bias = table[:, offsets(y)]
        out = lax.map(lambda a: window_attend(*a), (q * d**-0.5, k, v, bias))  # head by head, to stay in cache
        out = Dense(c, self.dtype, name="proj")(rearrange(out, "k b n d -> b n (k d)"))
        return rearrange(out, "b (y x) c -> b y x c", y=y)


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
        h, w, c = x.shape[1:]
        # The padding precedes the norm here (in the ViT it follows): padded tokens become the norm's bias.
        y = WindowAttention(self.heads, config.dtype, name="attn")(partition(x, self.window))
        x = x + self.drop(merge(y, h, w), rate)
        x = ConvNorm(config, c, 3, depthwise=True, name="local_conv")(x)
        y = LayerNorm(EPS, name="mlp_norm")(x)
        y = gelu(Dense(config.encoder.mlp_ratio * c, config.dtype, name="mlp_in")(y))
        return x + self.drop(Dense(c, config.dtype, name="mlp_out")(y), rate)

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
