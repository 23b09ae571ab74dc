"""The table of parameters against the model itself, and against the official and transformers' names."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from conftest import SMALL_TINY, SMALL_VIT

from convert import flatten, stored_form
from convert.table import KINDS, extras, rows
from samjax.config import LITE_MEDSAM, VIT_B, VIT_H, VIT_L, VIT_T, Decoder, SamConfig, TinyViT, ViT
from samjax.model.sam import init

PUBLISHED = [stored_form(config) for config in (VIT_B, VIT_L, VIT_H, VIT_T, LITE_MEDSAM)]
ODD = [
    SMALL_VIT, SMALL_TINY,
    SamConfig("five channels, seven masks", ViT(24, 3, 3, (), window=3, patch=8, mlp_ratio=2),
              Decoder(depth=1, mlp=16, masks=7), channels=16, image_size=(48, 32), in_channels=5),
    SamConfig("all global", ViT(16, 2, 4, (0, 1)), Decoder(depth=3, mlp=8), channels=64, image_size=(16, 32)),
    replace(SMALL_TINY, encoder=replace(SMALL_TINY.encoder, patch_stride=1, mlp_ratio=2), in_channels=1),
]


def names(configs):
    return [config.name for config in configs]


@pytest.mark.parametrize("config", PUBLISHED + ODD, ids=names(PUBLISHED + ODD))
def test_rows_are_the_models_parameters(config):
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    assert {row.path: row.shape for row in rows(config)} == {
        path: leaf.shape for path, leaf in flatten(shapes).items()}


@pytest.mark.parametrize("config", PUBLISHED + ODD, ids=names(PUBLISHED + ODD))
def test_names_are_unique(config):
    found = rows(config)
    for column in ("official", "path"):
        assert len({getattr(row, column) for row in found}) == len(found)
    assert not {row.official for row in found} & {extra.official for extra in extras(config)}
    if isinstance(config.encoder, ViT):
        assert len({row.transformers for row in found} - {None}) == len(found)
    else:
        assert extras(config)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_are_inverse_views(kind):
    shape = {"same": (3, 4), "dense": (3, 4), "row": (1, 5), "conv1": (3, 4, 1, 1)}.get(kind, (2, 3, 4, 5))
    there = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    here = KINDS[kind].to_jax(there)
    assert np.shares_memory(here, there)
    assert np.array_equal(KINDS[kind].to_torch(here), there)
    for row in rows(SMALL_VIT):
        if row.kind == kind:
            assert KINDS[kind].to_jax(np.zeros(row.torch_shape)).shape == row.shape


# -- the official models' names and shapes -------------------------------------------------------------------


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.torch
@pytest.mark.parametrize("config", PUBLISHED[:3], ids=names(PUBLISHED[:3]))
def test_official_vit(config):
    torch = pytest.importorskip("torch")
    from official import official_sam

    with torch.device("meta"):  # ViT-H without its 2.5 GB
        expected = shapes_of(official_sam(config.name))
    assert {row.official: row.torch_shape for row in rows(config)} == expected


@pytest.mark.torch
def test_official_mobile_sam():
    pytest.importorskip("torch")
    from official import official_mobile_sam

    config = stored_form(VIT_T)
    ours = {row.official: row.torch_shape for row in rows(config)}
    assert ours | {extra.official: extra.shape for extra in extras(config)} == shapes_of(official_mobile_sam())


def test_transformers():
    """Of the package's SamModel; a matrix that it holds twice is one here."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.device("meta"):
        expected = shapes_of(transformers.SamModel(transformers.SamConfig()))
    expected.pop("prompt_encoder.shared_embedding.positional_embedding", None)
    assert {row.transformers: row.torch_shape for row in rows(VIT_B)} == expected


def test_transformers_has_no_tiny_vit():
    encoder = [row for row in rows(PUBLISHED[3]) if row.path.startswith("image_encoder")]
    assert encoder and all(row.transformers is None for row in encoder)


def test_sizes_of_the_published_models():
    """Parameters in millions, as their publishers count them (without the classifier that MobileSAM never uses)."""
    counts = [sum(int(np.prod(row.shape)) for row in rows(config)) / 1e6 for config in PUBLISHED]
    assert [round(count, 1) for count in counts] == [93.7, 312.3, 641.1, 9.8, 9.8]
    assert isinstance(PUBLISHED[3].encoder, TinyViT)
