"""The implementations that samjax is compared with, built with random or given weights.

Needs the packages named in `PACKAGES` (each only for its own function). Parity tests and the speed experiment
share this file. Nothing here is needed to use samjax.
"""

import os
import zlib

import numpy as np
import torchvision_standin

PACKAGES = ("torch", "segment-anything", "mobilesam-lite", "timm", "transformers", "keras", "keras-hub",
            "jax", "jaxlib", "flax", "numpy", "pillow")
SHAPES = {  # width, depth, heads, global blocks
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}


def official_sam(kind="vit_b", seed=None, depth=None, global_blocks=None, image_size=1024, shape=None,
                 window=14):
    """The official PyTorch model, in eval mode.

    `seed` fills every tensor by `seeded_tensor` (fresh official models hold zeros, which hide a port's
    mistakes); `depth` and `global_blocks` shorten the encoder; `shape` = (width, depth, heads, global_blocks)
    replaces `kind`.
    """
    torchvision_standin.install()
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    from torch import nn

    width, full_depth, heads, full_blocks = shape or SHAPES[kind]
    grid = image_size // 16
    model = Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size, embed_dim=width, depth=depth or full_depth, num_heads=heads, out_chans=256,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=window,
            global_attn_indexes=full_blocks if global_blocks is None else global_blocks),
        prompt_encoder=PromptEncoder(embed_dim=256, image_embedding_size=(grid, grid),
                                     input_image_size=(image_size, image_size), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)),
    ).eval()
    return model if seed is None else seed_model(model, seed)


def official_mobile_sam(checkpoint=None, seed=None):
    """The official PyTorch MobileSAM, in eval mode, with the weights of a `mobile_sam.pt` if one is given."""
    import warnings

    torchvision_standin.install()
    with warnings.catch_warnings():  # timm's renamed modules, overwritten model registry
        warnings.simplefilter("ignore")
        from mobilesam_lite.mobile_sam import sam_model_registry
        model = sam_model_registry["vit_t"](checkpoint=checkpoint)
    model = model if seed is None else seed_model(model, seed)
    return model.eval()  # last: it keeps a copy of the attention biases as they are then


def official_predictor(model):
    """The official SamPredictor around an official model of either package."""
    if type(model).__module__.startswith("mobilesam_lite"):
        from mobilesam_lite.mobile_sam import SamPredictor
    else:
        from segment_anything import SamPredictor
    return SamPredictor(model)


def official_generator(model, **settings):
    """The official SamAutomaticMaskGenerator around a MobileSAM; min_mask_region_area needs opencv."""
    from mobilesam_lite.mobile_sam import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(model, **settings)


def seeded_tensor(name, shape, seed):
    """A float32 tensor that depends on nothing but the official name of a parameter, its shape and a seed.

    With z standard normal: biases, running means and positions (relative, absolute) are 0.1 z, scales
    1 + 0.1 z, running variances 1 + 0.1 |z|, all else z / sqrt(fan in).
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    z = generator.standard_normal(shape, dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 1 + 0.1 * np.abs(z)
    if leaf in ("bias", "running_mean", "pos_embed", "attention_biases") or leaf.startswith("rel_pos"):
        return 0.1 * z
    if leaf == "weight" and len(shape) == 1:
        return 1 + 0.1 * z
    return (z / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def seed_model(model, seed):
    """Fill every floating tensor of a PyTorch model by `seeded_tensor`; returns the model."""
    import torch

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(np.asarray(seeded_tensor(name, tuple(tensor.shape), seed))))
    return model


def transformers_sam(kind="vit_b"):
    """`transformers` SamModel, random weights, scaled-dot-product attention, in eval mode."""
    from transformers import SamConfig, SamModel

    width, depth, heads, global_blocks = SHAPES[kind]
    config = SamConfig(vision_config={
        "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
        "global_attn_indexes": list(global_blocks), "mlp_dim": 4 * width})
    config._attn_implementation = "sdpa"
    model = SamModel._from_config(config, attn_implementation="sdpa").eval()
    if model.vision_encoder.config._attn_implementation != "sdpa":
        raise RuntimeError("transformers did not take scaled-dot-product attention")
    return model


def transformers_encoder(kind):
    """The image encoder of `transformers_sam` alone."""
    return transformers_sam(kind).vision_encoder


def keras_hub_sam():
    """keras-hub's ViT-B image encoder, prompt encoder and mask decoder on the JAX backend, random weights."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras_hub

    width, depth, heads, global_blocks = SHAPES["vit_b"]
    encoder = keras_hub.models.ViTDetBackbone(
        hidden_size=width, num_layers=depth, intermediate_dim=4 * width, num_heads=heads, patch_size=16,
        global_attention_layer_indices=list(global_blocks), num_output_channels=256, window_size=14,
        image_shape=(1024, 1024, 3), dtype="float32")
    prompts = keras_hub.layers.SAMPromptEncoder(dtype="float32")
    decoder = keras_hub.layers.SAMMaskDecoder(hidden_size=256, num_layers=2, intermediate_dim=2048,
                                              num_heads=8, dtype="float32")
    prompts.build()
    decoder.build()
    return encoder, prompts, decoder


def versions() -> dict:
    """{package: version} of those of PACKAGES that are installed."""
    from importlib import metadata

    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
