"""One table of every parameter: its name in the official PyTorch files, in `transformers`, and here, with its shape.

`rows(config)` lists a model's parameters; each row is read in both directions. The shapes are written out rather than
traced from the model, so that reading a file needs no JAX; a test holds the two together.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from samjax.config import SamConfig, TinyViT, ViT


class Kind(NamedTuple):
    """How an array is laid out there and here: two functions, each the other's inverse (views, never copies)."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


KINDS = {
    "same": Kind(lambda x: x, lambda x: x),
    "dense": Kind(lambda x: x.T, lambda x: x.T),
    "row": Kind(lambda x: x[0], lambda x: x[None]),  # a leading axis of one
    "conv": Kind(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    "conv_t": Kind(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1)),  # transposed convolution
    "conv1": Kind(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),  # 1 x 1 convolution as a matrix
}


class Row(NamedTuple):
    """One parameter. `shape` is the shape here; `transformers` is None where that package has no such model."""

    official: str
    transformers: str | None
    path: str
    kind: str
    shape: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return KINDS[self.kind].to_torch(np.broadcast_to(np.float32(0), self.shape)).shape


class Extra(NamedTuple):
    """A tensor of the official file that the model never uses; kept beside the parameters so that it can go back."""

    official: str
    shape: tuple[int, ...]
    dtype: str = "float32"


def rows(config: SamConfig) -> list[Row]:
    """Every parameter of a model, with BatchNorm unfolded and blocks unstacked: the form that files hold."""
    encoder = _vit(config) if isinstance(config.encoder, ViT) else _tiny_vit(config)
    return [*encoder, *_neck(config), *_prompt_encoder(config), *_mask_decoder(config)]


def extras(config: SamConfig) -> list[Extra]:
    """TinyViT's classifier head, unused in SAM, and its BatchNorms' counters."""
    if not isinstance(config.encoder, TinyViT):
        return []
    width = config.encoder.widths[-1]
    head = [Extra("image_encoder.norm_head.weight", (width,)), Extra("image_encoder.norm_head.bias", (width,)),
            Extra("image_encoder.head.weight", (1000, width)), Extra("image_encoder.head.bias", (1000,))]
    suffix = ".running_mean"
    counters = [Extra(row.official.removesuffix(suffix) + ".num_batches_tracked", (), "int64")
                for row in _tiny_vit(config) if row.official.endswith(suffix)]
    return head + counters


def _linear(there: tuple[str, str | None], here: str, inputs: int, outputs: int, kind="dense") -> Iterator[Row]:
    """A weight and a bias. `there` is the layer's name in both naming schemes."""
    official, transformers = there
    hf = lambda leaf: transformers and f"{transformers}.{leaf}"
    yield Row(f"{official}.weight", hf("weight"), f"{here}/kernel", kind, (inputs, outputs))
    yield Row(f"{official}.bias", hf("bias"), f"{here}/bias", "same", (outputs,))


def _norm(there: tuple[str, str | None], here: str, width: int) -> Iterator[Row]:
    official, transformers = there
    hf = lambda leaf: transformers and f"{transformers}.{leaf}"
    yield Row(f"{official}.weight", hf("weight"), f"{here}/scale", "same", (width,))
    yield Row(f"{official}.bias", hf("bias"), f"{here}/bias", "same", (width,))


def _conv(there: tuple[str, str | None], here: str, kernel: tuple[int, ...], kind="conv", bias=True) -> Iterator[Row]:
    """A convolution; `kernel` is (size, size, inputs, outputs)."""
    official, transformers = there
    hf = lambda leaf: transformers and f"{transformers}.{leaf}"
    yield Row(f"{official}.weight", hf("weight"), f"{here}/kernel", kind, kernel)
    if bias:
        yield Row(f"{official}.bias", hf("bias"), f"{here}/bias", "same", kernel[-1:])


def _vit(config: SamConfig) -> Iterator[Row]:
    vit, here = config.encoder, "image_encoder"
    c, p = vit.width, vit.patch
    yield Row("image_encoder.pos_embed", "vision_encoder.pos_embed", f"{here}/pos_embed", "row", (*config.grid, c))
    yield from _conv(("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
                     f"{here}/patch_embed", (p, p, config.in_channels, c))
    for i in range(vit.depth):
        there = lambda a, b=None, i=i: (f"image_encoder.blocks.{i}.{a}", f"vision_encoder.layers.{i}.{b or a}")
        block = f"{here}/blocks_{i}"
        yield from _norm(there("norm1", "layer_norm1"), f"{block}/norm1", c)
        yield from _linear(there("attn.qkv"), f"{block}/attn/qkv", c, 3 * c)
        yield from _linear(there("attn.proj"), f"{block}/attn/proj", c, c)
        sizes = config.grid if i in vit.global_blocks else (vit.window, vit.window)
        for axis, size in zip("hw", sizes):
            yield Row(*there(f"attn.rel_pos_{axis}"), f"{block}/attn/rel_pos_{axis}", "same",
                      (2 * size - 1, c // vit.heads))
        yield from _norm(there("norm2", "layer_norm2"), f"{block}/norm2", c)
        yield from _linear(there("mlp.lin1"), f"{block}/mlp_in", c, vit.mlp_ratio * c)
        yield from _linear(there("mlp.lin2"), f"{block}/mlp_out", vit.mlp_ratio * c, c)


def _conv_norm(official: str, here: str, kernel: tuple[int, ...]) -> Iterator[Row]:
    """TinyViT's convolution without bias and its BatchNorm."""
    yield Row(f"{official}.c.weight", None, f"{here}/kernel", "conv", kernel)
    leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for leaf, name in leaves.items():
        yield Row(f"{official}.bn.{leaf}", None, f"{here}/norm_{name}", "same", kernel[-1:])


def _tiny_vit(config: SamConfig) -> Iterator[Row]:
    tiny, here = config.encoder, "image_encoder"
    size, c = (3 if tiny.patch_stride == 4 else 1), tiny.widths[0]
    stem = "image_encoder.patch_embed.seq"
    yield from _conv_norm(f"{stem}.0", f"{here}/patch_embed_0", (size, size, config.in_channels, c // 2))
    yield from _conv_norm(f"{stem}.2", f"{here}/patch_embed_1", (size, size, c // 2, c))
    for i, c in enumerate(tiny.widths):
        for j in range(tiny.depths[i]):
            block = _mb_conv if i == 0 else _tiny_block
            yield from block(config, f"image_encoder.layers.{i}.blocks.{j}", f"{here}/stages_{i}_blocks_{j}", i)
        if i + 1 < len(tiny.widths):
            there, wide = f"image_encoder.layers.{i}.downsample", tiny.widths[i + 1]
            for k, kernel in enumerate([(1, 1, c, wide), (3, 3, 1, wide), (1, 1, wide, wide)], 1):
                yield from _conv_norm(f"{there}.conv{k}", f"{here}/stages_{i}_downsample/conv{k}", kernel)


def _mb_conv(config: SamConfig, there: str, here: str, stage: int) -> Iterator[Row]:
    c = config.encoder.widths[stage]
    for k, kernel in enumerate([(1, 1, c, 4 * c), (3, 3, 1, 4 * c), (1, 1, 4 * c, c)], 1):
        yield from _conv_norm(f"{there}.conv{k}", f"{here}/conv{k}", kernel)


def _tiny_block(config: SamConfig, there: str, here: str, stage: int) -> Iterator[Row]:
    tiny = config.encoder
    c, window = tiny.widths[stage], tiny.windows[stage]
    yield from _norm((f"{there}.attn.norm", None), f"{here}/attn/norm", c)
    yield from _linear((f"{there}.attn.qkv", None), f"{here}/attn/qkv", c, 3 * c)
    yield from _linear((f"{there}.attn.proj", None), f"{here}/attn/proj", c, c)
    yield Row(f"{there}.attn.attention_biases", None, f"{here}/attn/bias", "same", (tiny.heads[stage], window**2))
    yield from _conv_norm(f"{there}.local_conv", f"{here}/local_conv", (3, 3, 1, c))
    yield from _norm((f"{there}.mlp.norm", None), f"{here}/mlp_norm", c)
    yield from _linear((f"{there}.mlp.fc1", None), f"{here}/mlp_in", c, tiny.mlp_ratio * c)
    yield from _linear((f"{there}.mlp.fc2", None), f"{here}/mlp_out", tiny.mlp_ratio * c, c)


def _neck(config: SamConfig) -> Iterator[Row]:
    width = config.encoder.width if isinstance(config.encoder, ViT) else config.encoder.widths[-1]
    c, here = config.channels, "image_encoder/neck"
    there = lambda i, name: (f"image_encoder.neck.{i}",
                             f"vision_encoder.neck.{name}" if isinstance(config.encoder, ViT) else None)
    yield from _conv(there(0, "conv1"), f"{here}/conv1", (width, c), kind="conv1", bias=False)
    yield from _norm(there(1, "layer_norm1"), f"{here}/norm1", c)
    yield from _conv(there(2, "conv2"), f"{here}/conv2", (3, 3, c, c), bias=False)
    yield from _norm(there(3, "layer_norm2"), f"{here}/norm2", c)


def _prompt_encoder(config: SamConfig) -> Iterator[Row]:
    c, name = config.channels, "prompt_encoder"
    yield Row(f"{name}.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding",
              f"{name}/gaussian", "same", (2, c // 2))
    for i in range(4):
        yield Row(f"{name}.point_embeddings.{i}.weight", f"{name}.point_embed.{i}.weight", f"{name}/label_{i}", "row",
                  (c,))
    for leaf in ("not_a_point", "no_mask"):
        yield Row(f"{name}.{leaf}_embed.weight", f"{name}.{leaf}_embed.weight", f"{name}/{leaf}", "row", (c,))
    there = lambda i, hf: (f"{name}.mask_downscaling.{i}", f"{name}.mask_embed.{hf}")
    here = f"{name}/mask_downscale"
    yield from _conv(there(0, "conv1"), f"{here}/conv1", (2, 2, 1, 4))
    yield from _norm(there(1, "layer_norm1"), f"{here}/norm1", 4)
    yield from _conv(there(3, "conv2"), f"{here}/conv2", (2, 2, 4, 16))
    yield from _norm(there(4, "layer_norm2"), f"{here}/norm2", 16)
    yield from _conv(there(6, "conv3"), f"{here}/conv3", (16, c), kind="conv1")


def _mask_decoder(config: SamConfig) -> Iterator[Row]:
    c, decoder, name = config.channels, config.decoder, "mask_decoder"
    yield Row(f"{name}.iou_token.weight", f"{name}.iou_token.weight", f"{name}/iou_token", "same", (1, c))
    yield Row(f"{name}.mask_tokens.weight", f"{name}.mask_tokens.weight", f"{name}/mask_tokens", "same",
              (decoder.masks, c))
    for i in range(decoder.depth):
        there = lambda a, b=None, i=i: (f"{name}.transformer.layers.{i}.{a}", f"{name}.transformer.layers.{i}.{b or a}")
        here = f"{name}/blocks_{i}"
        yield from _attention(there("self_attn"), f"{here}/self_attn", c, c)
        for side in ("token_to_image", "image_to_token"):
            yield from _attention(there(f"cross_attn_{side}"), f"{here}/{side}", c, c // 2)
        for k in range(1, 5):
            yield from _norm(there(f"norm{k}", f"layer_norm{k}"), f"{here}/norm{k}", c)
        yield from _linear(there("mlp.lin1"), f"{here}/mlp/layers_0", c, decoder.mlp)
        yield from _linear(there("mlp.lin2"), f"{here}/mlp/layers_1", decoder.mlp, c)
    transformer = f"{name}.transformer"
    final = f"{transformer}.final_attn_token_to_image"
    yield from _attention((final, final), f"{name}/final_token_to_image", c, c // 2)
    norm = f"{transformer}.norm_final_attn", f"{transformer}.layer_norm_final_attn"
    yield from _norm(norm, f"{name}/final_norm", c)
    yield from _conv((f"{name}.output_upscaling.0", f"{name}.upscale_conv1"), f"{name}/upscale/conv1",
                     (2, 2, c, c // 4), kind="conv_t")
    yield from _norm((f"{name}.output_upscaling.1", f"{name}.upscale_layer_norm"), f"{name}/upscale/norm", c // 4)
    yield from _conv((f"{name}.output_upscaling.3", f"{name}.upscale_conv2"), f"{name}/upscale/conv2",
                     (2, 2, c // 4, c // 8), kind="conv_t")
    for i in range(decoder.masks):
        there = f"{name}.output_hypernetworks_mlps.{i}"
        yield from _head(there, f"{name}/hyper_{i}", (c, c, c, c // 8))
    yield from _head(f"{name}.iou_prediction_head", f"{name}/iou_head", (c, c, c, decoder.masks))


def _attention(there: tuple[str, str], here: str, c: int, width: int) -> Iterator[Row]:
    for leaf in "qkv":
        yield from _linear(tuple(f"{name}.{leaf}_proj" for name in there), f"{here}/{leaf}", c, width)
    yield from _linear(tuple(f"{name}.out_proj" for name in there), f"{here}/out", width, c)


def _head(there: str, here: str, widths: tuple[int, ...]) -> Iterator[Row]:
    """A three-layer perceptron."""
    for j, leaf in enumerate(("proj_in", "layers.0", "proj_out")):
        yield from _linear((f"{there}.layers.{j}", f"{there}.{leaf}"), f"{here}/layers_{j}", *widths[j : j + 2])
