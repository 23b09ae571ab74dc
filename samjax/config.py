"""What a model is: frozen dataclasses whose defaults are the paper's values.

A `SamConfig` is hashable, so it can be a static argument of `jit`; parameters never are. Change one with
`dataclasses.replace(config, dtype="bfloat16")`.
"""

import dataclasses
from dataclasses import dataclass

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # of 0..255 RGB
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ViT:
    """The plain vision transformer of SAM (ViTDet): windowed blocks with a few global ones, then a neck."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    patch: int = 16
    mlp_ratio: int = 4
    drop_path: float = 0.0  # rate of the last block; rises linearly from 0 (training only)
    scan: bool = False  # blocks stacked and scanned: compiles faster; see model.image_encoder.stack_blocks
    # Recompute in the backward pass, for less memory and more time: True each block, "products" of each block what is
    # cheap, all but the products of its linear maps.
    remat: bool | str = False

    def __post_init__(self):
        if not isinstance(self.remat, bool) and self.remat != "products":
            raise ValueError(f"remat {self.remat!r} is none of False, True, 'products'")

    @property
    def stride(self) -> int:
        """Input pixels per cell of the feature grid."""
        return self.patch


@dataclass(frozen=True)
class TinyViT:
    """MobileSAM's light encoder: one convolutional stage, three of windowed attention, then a neck."""

    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)
    mlp_ratio: int = 4
    patch_stride: int = 4  # 4: two stride-2 convolutions (MobileSAM); 1: two 1x1 convolutions (LiteMedSAM)
    fold_batch_norm: bool = True  # parameters hold convolutions with their BatchNorm folded in (inference)
    drop_path: float = 0.0
    remat: bool = False

    def __post_init__(self):
        if not isinstance(self.remat, bool):
            raise ValueError(f"remat {self.remat!r} is neither False nor True")

    @property
    def stride(self) -> int:
        """Input pixels per cell of the feature grid: two of the four stages halve the patch grid."""
        return self.patch_stride * 4


@dataclass(frozen=True)
class Decoder:
    """The two-way transformer that turns prompts into masks."""

    depth: int = 2
    heads: int = 8
    mlp: int = 2048
    masks: int = 4  # token 0 answers unambiguous prompts; tokens 1 to 3 are the three alternatives
    dropout: float = 0.0  # the paper trains with 0.1
    mixed: bool = False  # scores and the image's positions in the model's dtype too: for training (model/mixed.py)


@dataclass(frozen=True)
class SamConfig:
    """A whole model. Two configs that are equal describe parameter trees of equal shapes."""

    name: str = "vit_b"
    encoder: ViT | TinyViT = ViT()
    decoder: Decoder = Decoder()
    channels: int = 256  # of the features, the prompts and the decoder
    image_size: tuple[int, int] = (1024, 1024)  # (h, w) that the encoder sees; multiples of 16
    in_channels: int = 3
    normalise: str = "mean_std"  # or "min_max": each image to [0, 1] by its own extremes (LiteMedSAM)
    resize: str = "bilinear"  # or "area": how a photograph is brought to image_size
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD
    dtype: str = "float32"  # of the computation; norms, softmax and final logits stay float32
    attention: str = "auto"  # of a ViT's encoder: see model.attention_windows.chosen, model.attention.IMPLEMENTATIONS
    decode_chunk: int = 0  # prompts decoded at a time; 0: one on a CPU, all of them elsewhere

    def __post_init__(self):
        step = max(self.encoder.stride, 16)
        if any(side <= 0 or side % step for side in self.image_size):
            raise ValueError(f"image_size {self.image_size} must be positive multiples of {step}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype {self.dtype!r} is neither 'float32' nor 'bfloat16'")
        if self.normalise not in ("mean_std", "min_max"):
            raise ValueError(f"normalise {self.normalise!r} is neither 'mean_std' nor 'min_max'")
        if self.resize not in ("bilinear", "area"):
            raise ValueError(f"resize {self.resize!r} is neither 'bilinear' nor 'area'")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature grid: 64 x 64 for the published models."""
        return self.image_size[0] // self.encoder.stride, self.image_size[1] // self.encoder.stride

    @property
    def mask_size(self) -> tuple[int, int]:
        """(h, w) of the low-resolution mask logits: four per cell of the feature grid."""
        return self.grid[0] * 4, self.grid[1] * 4


VIT_B = SamConfig("vit_b", ViT())
VIT_L = SamConfig("vit_l", ViT(1024, 24, 16, (5, 11, 17, 23)))
VIT_H = SamConfig("vit_h", ViT(1280, 32, 16, (7, 15, 23, 31)))
VIT_T = SamConfig("mobile_sam", TinyViT())
LITE_MEDSAM = SamConfig("lite_medsam", TinyViT(patch_stride=1), image_size=(256, 256),
                        normalise="min_max", resize="area")


def to_dict(config: SamConfig) -> dict:
    """A JSON-able dict; `from_dict` reads it back."""
    kind = {ViT: "vit", TinyViT: "tiny_vit"}[type(config.encoder)]
    return {**dataclasses.asdict(config), "encoder": {"kind": kind, **dataclasses.asdict(config.encoder)}}


def from_dict(values: dict) -> SamConfig:
    """The inverse of `to_dict`. Raises ValueError that names an unknown key, a missing kind or a wrong type."""
    def build(cls, given, **parts):
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"unknown {cls.__name__} settings: {', '.join(unknown)}")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        for name, value in given.items():
            if name != "remat" and not _alike(value, known[name].default):
                raise ValueError(f"{cls.__name__} setting {name} cannot be {value!r}")
        return cls(**given, **parts)

    values = dict(values)
    encoder = dict(values.pop("encoder", {}))
    kind = encoder.pop("kind", None)
    kinds = {"vit": ViT, "tiny_vit": TinyViT}
    if kind not in kinds:
        raise ValueError(f"encoder kind {kind!r} is none of {', '.join(kinds)}")
    decoder = build(Decoder, values.pop("decoder", {}))
    return build(SamConfig, values, encoder=build(kinds[kind], encoder), decoder=decoder)


def _alike(value, default) -> bool:
    """Whether a value has the type of a default; whole numbers will do for floats."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_alike(x, default[0]) for x in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)
