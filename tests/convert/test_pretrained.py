"""A pretrained ViT as the encoder's beginning: every tensor to its place, and what does not fit by name."""

from dataclasses import replace

import numpy as np
import pretrained
import pytest

from convert.pretrained import read_pretrained
from samjax.config import VIT_T, SamConfig, ViT
from samjax.errors import InputError

CONFIG = SamConfig("custom", ViT(width=16, depth=2, heads=2, global_blocks=(1,), window=3), image_size=(64, 64))


def test_every_tensor_comes_to_its_place(tmp_path):
    there = pretrained.write(tmp_path / "vit.pth", CONFIG, grid=3)
    here = read_pretrained(tmp_path / "vit.pth", CONFIG)
    assert len(here) == 3 + 12 * 2
    block = "image_encoder/blocks_1"
    np.testing.assert_array_equal(here[f"{block}/attn/qkv/kernel"], there["blocks.1.attn.qkv.weight"].T)
    np.testing.assert_array_equal(here[f"{block}/mlp_in/kernel"], there["blocks.1.mlp.fc1.weight"].T)
    np.testing.assert_array_equal(here[f"{block}/mlp_out/bias"], there["blocks.1.mlp.fc2.bias"])
    np.testing.assert_array_equal(here[f"{block}/norm2/scale"], there["blocks.1.norm2.weight"])
    np.testing.assert_array_equal(here["image_encoder/patch_embed/kernel"],
                                  there["patch_embed.proj.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(here["image_encoder/pos_embed"], there["pos_embed"][0, 1:].reshape(3, 3, 16))


def test_positions_without_a_class_token(tmp_path):
    table = np.random.default_rng(0).standard_normal((1, 16, 16), np.float32)
    pretrained.write(tmp_path / "vit.pth", CONFIG, grid=3, drop=["cls_token"], pos_embed=table)
    np.testing.assert_array_equal(read_pretrained(tmp_path / "vit.pth", CONFIG)["image_encoder/pos_embed"],
                                  table.reshape(4, 4, 16))


@pytest.mark.parametrize("config, how, message", [
    (VIT_T, {}, "only a plain ViT can begin with a pretrained one, and mobile_sam has none"),
    (replace(CONFIG, encoder=replace(CONFIG.encoder, depth=3, global_blocks=(2,))), {},
     "depth 3.*has no blocks.2.attn.proj.bias, and 11 others are missing"),
    (replace(CONFIG, encoder=replace(CONFIG.encoder, depth=1, global_blocks=(0,))), {},
     "depth 1.*that has no blocks.1.attn.proj.bias"),
    (replace(CONFIG, encoder=replace(CONFIG.encoder, width=32)), {}, r"proj.weight is .16, 3, 16, 16., not .32, 3"),
    (CONFIG, {"drop": ["blocks.0.norm1.bias"]}, "has no blocks.0.norm1.bias"),
    (CONFIG, {"pos_embed": np.zeros((1, 12, 16), np.float32)}, r"pos_embed is \(1, 12, 16\)"),
    (CONFIG, {"blocks.0.norm1.bias": np.full(16, np.nan, np.float32)}, "blocks.0.norm1.bias holds NaN"),
    (CONFIG, {"blocks.0.ls1.gamma": np.zeros(16, np.float32)}, "that has no blocks.0.ls1.gamma"),
])
def test_what_does_not_fit(tmp_path, config, how, message):
    pretrained.write(tmp_path / "vit.pth", CONFIG, grid=3, **how)
    with pytest.raises(InputError, match=message) as error:
        read_pretrained(tmp_path / "vit.pth", config)
    assert "vit.pth" in str(error.value)


def test_a_file_of_another_kind(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_pretrained(tmp_path / "vit.pth", CONFIG)
    (tmp_path / "vit.pth").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="vit.pth"):
        read_pretrained(tmp_path / "vit.pth", CONFIG)
