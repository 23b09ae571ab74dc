"""The plain ViT image encoder (Segment Anything, section 3 and appendix A; Li et al., ViTDet)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from samjax.config import SamConfig, ViT
from samjax.model.attention import ATTENTION, relative_positions
from samjax.model.attention_windows import attend_grid
from samjax.model.layers import PRODUCT, Dense, LayerNorm, Weights, conv, init_conv, matmul, mlp

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with relative positions over a grid, in windows or (window 0) global.

    (b, h, w, c) -> (b, h, w, c). Windows are padded with zeros, whose projection is the bias.
    """

    heads: int
    window: int
    dtype: str
    implementation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape[1:]
        kernel, bias = Dense(3 * c, self.dtype, name="qkv").weights(c)
        qkv = matmul(x, kernel, self.dtype)
        rel_h, rel_w = (
            relative_positions(self.param(name, nn.initializers.zeros, (2 * size - 1, c // self.heads)), size)
            for name, size in zip(("rel_pos_h", "rel_pos_w"), (self.window or h, self.window or w)))
        out = attend_grid(qkv, bias, rel_h, rel_w, self.heads, self.window,
                          self.dtype, self.implementation)
        return Dense(c, self.dtype, name="proj")(out)


class Block(nn.Module):
    """A transformer block; `window` 0 means global attention."""

    config: SamConfig
    window: int
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, drop_path: Array | float = 0.0) -> Array:
        config, vit = self.config, self.config.encoder
        c = x.shape[-1]
        y = LayerNorm(EPS, name="norm1")(x)
        y = Attention(vit.heads, self.window, config.dtype, config.attention, name="attn")(y)
        x = x + self.drop(y, drop_path)
        y = LayerNorm(EPS, name="norm2")(x)
        hidden = vit.mlp_ratio * c
        y = mlp(y, Weights(hidden, name="mlp_in")(c), Weights(c, name="mlp_out")(hidden), config.dtype)
        return x + self.drop(y, drop_path)

    def drop(self, y: Array, rate: Array | float) -> Array:
        return drop_path(y, rate, self.make_rng("dropout")) if self.train else y


class Group(nn.Module):
    """The windowed blocks up to a global one, and that one: what a scan over a deep ViT repeats."""

    config: SamConfig
    train: bool

    @nn.compact
    def __call__(self, x: Array, drop_paths: Array) -> tuple[Array, None]:
        block = make_block(self.config.encoder)
        windowed = drop_paths.shape[0] - 1
        if windowed:
            scan = nn.scan(lambda block, x, rate: (block(x, rate), None), variable_axes={"params": 0},
                           split_rngs={"params": True, "dropout": True}, length=windowed)
            x, _ = scan(block(self.config, self.config.encoder.window, self.train, name="windowed"),
                        x, drop_paths[:-1])
        return block(self.config, 0, self.train, name="global")(x, drop_paths[-1]), None


class ImageEncoder(nn.Module):
    """Image to features: (b, H, W, in_channels) normalised pixels -> (b, H / 16, W / 16, 256) float32."""

    config: SamConfig
    train: bool = False

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config, vit = self.config, self.config.encoder
        x = PatchEmbed(vit.width, vit.patch, config.dtype, name="patch_embed")(pixels)
        positions = self.param("pos_embed", nn.initializers.truncated_normal(0.02), x.shape[1:])
        x = x + positions
        rates = jnp.linspace(0.0, vit.drop_path, vit.depth)  # deeper blocks are dropped more often
        if vit.scan:
            groups, size = group_shape(vit)
            scan = nn.scan(Group, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
                           length=groups)
            x, _ = scan(config, self.train, name="groups")(x, rates.reshape(groups, size))
        else:
            for i in range(vit.depth):
                window = 0 if i in vit.global_blocks else vit.window
                x = make_block(vit)(config, window, self.train, name=f"blocks_{i}")(x, rates[i])
        return Neck(config.channels, config.dtype, name="neck")(x)


def make_block(vit: ViT) -> type[Block]:
    """`Block`, rematerialised as the config says."""
    if not vit.remat:
        return Block
    kept = jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION) if vit.remat == "products" else None
    return nn.remat(Block, policy=kept, prevent_cse=not vit.scan)


def drop_path(y: Array, rate: Array | float, key: Array) -> Array:
    """Stochastic depth (Huang et al., 2016): the branch of a whole image is dropped, the others scaled up."""
    keep = jax.random.bernoulli(key, 1.0 - rate, (y.shape[0],) + (1,) * (y.ndim - 1))
    return jnp.where(keep, y / jnp.asarray(1.0 - rate, y.dtype), jnp.zeros_like(y))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each through one linear map: (b, h, w, c) -> (b, h / p, w / p, width)."""

    width: int
    patch: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p = self.patch
        kernel = self.param("kernel", init_conv, (p, p, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        x = rearrange(x.astype(self.dtype), "b (h y) (w x) c -> b h w (y x c)", y=p, x=p)
        return matmul(x, rearrange(kernel, "y x c d -> (y x c) d"), self.dtype) + bias


class Neck(nn.Module):
    """The encoder's width to the features' 256 channels."""

    channels: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Dense(self.channels, self.dtype, use_bias=False, name="conv1")(x)
        x = LayerNorm(EPS, name="norm1")(x)
        x = Conv3(self.channels, self.dtype, name="conv2")(x)
        return LayerNorm(EPS, name="norm2")(x)


class Conv3(nn.Module):
    """A 3 x 3 convolution without bias that keeps the grid; returns float32."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", init_conv, (3, 3, x.shape[-1], self.features))
        return conv(x.astype(self.dtype), kernel.astype(self.dtype)).astype(jnp.float32)


def group_shape(vit: ViT) -> tuple[int, int]:
    """(groups, blocks in each) of a ViT whose global blocks are evenly spaced, as scanning needs."""
    groups = len(vit.global_blocks)
    size = vit.depth // max(groups, 1)
    if tuple(vit.global_blocks) != tuple(range(size - 1, vit.depth, size)):
        raise ValueError(f"scan needs global blocks at equal distances, the last block among them; "
                         f"got {vit.global_blocks} of {vit.depth}")
    return groups, size
