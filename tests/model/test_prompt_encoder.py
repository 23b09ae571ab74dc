"""Prompts to vectors: against the official prompt encoder on a grid whose sides differ."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_VIT, random_params
from golden_files import relative_error

from convert.model import flatten
from convert.table import KINDS, rows
from samjax.model.prompt_encoder import PromptEncoder, fourier_code

CONFIG = replace(SMALL_VIT, channels=256)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)["prompt_encoder"]


def apply(params, method, *args):
    return PromptEncoder(CONFIG).apply({"params": params}, *args, method=method)


@pytest.fixture(scope="module")
def official(params):
    """The official PromptEncoder with the same weights, for 64 x 96 pixels."""
    torch = pytest.importorskip("torch")
    import torchvision_standin

    torchvision_standin.install()
    from segment_anything.modeling import PromptEncoder as Official

    encoder = Official(256, CONFIG.grid, CONFIG.image_size, 16)
    flat, state = flatten({"prompt_encoder": params}), {}
    for row in rows(CONFIG):
        if row.path in flat:
            name = row.official.removeprefix("prompt_encoder.")
            state[name] = torch.from_numpy(np.ascontiguousarray(KINDS[row.kind].to_torch(flat[row.path])))
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


POINTS = np.random.default_rng(0).uniform(-3, 96, (4, 3, 2)).astype(np.float32)
LABELS = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, -1]], np.int32)
BOXES = np.random.default_rng(1).uniform(0, 90, (4, 4)).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize("with_points, with_boxes", [(True, False), (False, True), (True, True)])
def test_tokens_equal_official(params, official, with_points, with_boxes):
    """The official encoder appends its own "not a point" where no box is given; here the caller does."""
    import torch

    points, labels = [], []
    if with_points:
        points, labels = [POINTS], [LABELS]
        if not with_boxes:
            points, labels = [*points, np.zeros((4, 1, 2), np.float32)], [*labels, np.full((4, 1), -1, np.int32)]
    if with_boxes:
        points, labels = [*points, BOXES.reshape(4, 2, 2)], [*labels, np.tile(np.int32([2, 3]), (4, 1))]
    found = apply(params, "sparse", np.concatenate(points, 1)[None], np.concatenate(labels, 1)[None])
    with torch.no_grad():
        expected, _ = official(points=(torch.from_numpy(POINTS), torch.from_numpy(LABELS)) if with_points else None,
                               boxes=torch.from_numpy(BOXES) if with_boxes else None, masks=None)
    assert relative_error(found[0], expected.numpy()) <= 1e-5


@pytest.mark.torch
def test_masks_equal_official(params, official):
    import torch

    logits = np.random.default_rng(2).normal(0, 8, (1, 5, *CONFIG.mask_size)).astype(np.float32)
    found = apply(params, "dense", logits, np.ones((1, 5), bool))
    with torch.no_grad():
        _, expected = official(points=None, boxes=None, masks=torch.from_numpy(logits[0][:, None]))
        _, none = official(points=None, boxes=None, masks=None)
    assert relative_error(found[0].transpose(0, 3, 1, 2), expected.numpy()) <= 1e-5
    without = apply(params, "dense", logits, np.zeros((1, 5), bool))
    assert np.array_equal(without[0, :1].transpose(0, 3, 1, 2), none.detach().numpy())


@pytest.mark.torch
def test_positions_equal_official(params, official):
    import torch

    with torch.no_grad():
        expected = official.get_dense_pe()[0].permute(1, 2, 0).numpy()
    assert relative_error(apply(params, "positions"), expected) <= 1e-5


def test_each_label(params):
    """Empty slots are zero, -1 is the learned vector alone, every other label its own vector beside the position."""
    points = np.full((1, 1, 8, 2), 7.0, np.float32)
    labels = np.int32([[[0, 1, 2, 3, -1, -2, 4, -100]]])
    found = np.asarray(apply(params, "sparse", points, labels))[0, 0]
    code = fourier_code(jnp.array([7.5 / 96, 7.5 / 64], jnp.float32), params["gaussian"])
    for i in range(4):
        assert np.allclose(found[i], code + params[f"label_{i}"], atol=1e-6)
    assert np.array_equal(found[4], params["not_a_point"])
    assert not found[5:].any()


def test_masks_mix_within_a_batch(params):
    logits = np.random.default_rng(2).normal(0, 8, (2, 2, *CONFIG.mask_size)).astype(np.float32)
    flags = np.array([[True, False], [False, False]])
    found = apply(params, "dense", logits, flags)
    assert relative_error(found[0, 0], apply(params, "dense", logits, ~flags)[0, 1]) > 0.1
    assert relative_error(found[0, 0], apply(params, "dense", logits[:1, :1], flags[:1, :1])[0, 0]) <= 1e-6
    assert np.array_equal(found[0, 1], np.broadcast_to(params["no_mask"], found[0, 1].shape))
    assert np.array_equal(apply(params, "dense", None, None).ravel(), params["no_mask"])


def test_the_gaussian_matrix_is_never_trained(params):
    loss = lambda params: apply(params, "sparse", POINTS[None], LABELS[None]).sum() + apply(params, "positions").sum()
    gradient = jax.grad(loss)(params)
    assert not gradient["gaussian"].any() and gradient["label_0"].all() and gradient["not_a_point"].all()
