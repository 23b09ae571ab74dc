"""Which model a file holds, read off the names and shapes of its tensors."""

import re
from collections.abc import Mapping

from convert.table import rows
from convert.tensor import Tensor
from samjax.config import LITE_MEDSAM, VIT_B, VIT_H, VIT_L, VIT_T, Decoder, SamConfig, TinyViT, ViT
from samjax.errors import InputError


def recognise(tensors: Mapping[str, Tensor], path) -> tuple[SamConfig, str]:
    """(config, naming) of a file's tensors, where naming is "official" or "transformers".

    The config says everything that shapes can say: width, depth, heads, windows, input size and channels, masks.
    The name is that of the published model of equal shapes, or "custom". Raises InputError when the tensors are no
    SAM's at all; whether they are *exactly* the recognised model's is for the caller to check.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        if "image_encoder.patch_embed.seq.0.c.weight" in shapes:
            return _tiny_vit(shapes), "official"
        if "image_encoder.patch_embed.proj.weight" in shapes:
            return _vit(shapes, "official"), "official"
        if "vision_encoder.patch_embed.projection.weight" in shapes:
            return _vit(shapes, "transformers"), "transformers"
    except (KeyError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{path}: looks like a SAM checkpoint, but its tensors do not fit together "
                         f"({_explain(error)}); the file is incomplete or of another model") from None
    example = f"; it begins with {next(iter(shapes))!r}" if shapes else " and holds no tensor"
    raise InputError(f"{path}: is not a SAM checkpoint (official, MobileSAM, LiteMedSAM or transformers SamModel)"
                     f"{example}")


def _explain(error: Exception) -> str:
    return f"missing {error}" if isinstance(error, KeyError) else str(error)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _count(shapes: Mapping[str, tuple], pattern: str) -> int:
    """How many different numbers stand at the pattern's group; they must be 0, 1, 2, ..."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    _require(found == set(range(len(found))), f"gaps in the numbering of {pattern}")
    return len(found)


def _matrix(shapes: Mapping[str, tuple], name: str, rank: int = 2) -> tuple[int, ...]:
    shape = shapes[name]
    _require(len(shape) == rank and min(shape, default=0) > 0, f"{name} has shape {shape}")
    return shape


def _decoder(shapes: Mapping[str, tuple]) -> Decoder:
    depth = _count(shapes, r"mask_decoder\.transformer\.layers\.(\d+)\.")
    mlp = _matrix(shapes, "mask_decoder.transformer.layers.0.mlp.lin1.weight")[0]
    return Decoder(depth=depth, mlp=mlp, masks=_matrix(shapes, "mask_decoder.mask_tokens.weight")[0])


def _channels(shapes: Mapping[str, tuple], name: str) -> int:
    channels, = _matrix(shapes, name, 1)
    heads = Decoder.heads  # no tensor tells their number
    _require(channels % (2 * heads) == 0, f"{channels} channels are no multiple of {2 * heads}")
    return channels


def _vit(shapes: Mapping[str, tuple], naming: str) -> SamConfig:
    root, blocks, proj, norm = {
        "official": ("image_encoder", "blocks", "patch_embed.proj", "neck.1"),
        "transformers": ("vision_encoder", "layers", "patch_embed.projection", "neck.layer_norm1"),
    }[naming]
    width, in_channels, patch, _ = _matrix(shapes, f"{root}.{proj}.weight", 4)
    _, grid_h, grid_w, _ = _matrix(shapes, f"{root}.pos_embed", 4)
    depth = _count(shapes, rf"{root}\.{blocks}\.(\d+)\.")
    _require(0 < depth <= 256, f"{depth} blocks")
    table = lambda i, axis: _matrix(shapes, f"{root}.{blocks}.{i}.attn.rel_pos_{axis}")
    lengths, head_width = [(table(i, "h")[0], table(i, "w")[0]) for i in range(depth)], table(0, "h")[1]
    _require(width % head_width == 0, f"width {width} is no multiple of the heads' {head_width}")
    whole = 2 * grid_h - 1, 2 * grid_w - 1  # where a window is the whole grid, it may as well be global
    window = min(((pair[0] + 1) // 2 for pair in lengths if pair != whole), default=ViT.window)
    mlp = _matrix(shapes, f"{root}.{blocks}.0.mlp.lin1.weight")[0]
    _require(mlp % width == 0, f"the MLP's width {mlp} is no multiple of {width}")
    vit = ViT(width=width, depth=depth, heads=width // head_width, window=window, patch=patch,
              global_blocks=tuple(i for i, pair in enumerate(lengths) if pair == whole),
              mlp_ratio=mlp // width)
    config = SamConfig("custom", vit, _decoder(shapes), channels=_channels(shapes, f"{root}.{norm}.weight"),
                       image_size=(grid_h * patch, grid_w * patch), in_channels=in_channels)
    return _named(config, (VIT_B, VIT_L, VIT_H))


def _tiny_vit(shapes: Mapping[str, tuple]) -> SamConfig:
    root = "image_encoder"
    stem, in_channels, size, _ = _matrix(shapes, f"{root}.patch_embed.seq.0.c.weight", 4)
    _require(size in (1, 3), f"{root}.patch_embed has kernels of size {size}")
    depths = tuple(_count(shapes, rf"{root}\.layers\.{i}\.blocks\.(\d+)\.") for i in range(4))
    _require(min(depths) > 0 and max(depths) <= 64, f"stages of {depths} blocks")
    widths, heads, windows = [2 * stem], [2], [7]  # the first stage is convolutional and has neither
    for i in range(1, 4):
        widths.append(_matrix(shapes, f"{root}.layers.{i}.blocks.0.attn.norm.weight", 1)[0])
        count, entries = _matrix(shapes, f"{root}.layers.{i}.blocks.0.attn.attention_biases")
        _require(widths[-1] % count == 0, f"width {widths[-1]} is no multiple of {count} heads")
        heads.append(count)
        windows.append(round(entries**0.5))
        _require(windows[-1] ** 2 == entries, f"stage {i} has {entries} attention biases, not a square number")
    like = VIT_T if size == 3 else LITE_MEDSAM
    tiny = TinyViT(tuple(widths), depths, tuple(heads), tuple(windows), patch_stride=like.encoder.patch_stride,
                   mlp_ratio=_matrix(shapes, f"{root}.layers.1.blocks.0.mlp.fc1.weight")[0] // widths[1])
    config = SamConfig("custom", tiny, _decoder(shapes), image_size=like.image_size, in_channels=in_channels,
                       channels=_channels(shapes, f"{root}.neck.1.weight"),
                       normalise=like.normalise, resize=like.resize)
    return _named(config, (VIT_T, LITE_MEDSAM))


def _named(config: SamConfig, known: tuple[SamConfig, ...]) -> SamConfig:
    """The published model of the same shapes, if there is one."""
    shapes = sorted((row.path, row.shape) for row in rows(config))
    for model in known:
        alike = (type(model.encoder), model.image_size, model.decoder) == (
            type(config.encoder), config.image_size, config.decoder)
        if alike and sorted((row.path, row.shape) for row in rows(model)) == shapes:
            return model
    return config
