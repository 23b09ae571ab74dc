"""The whole model beside the official PyTorch package, live, in the configurations B, L and H: outputs and gradients.

Widths, heads and windows are the published ones; the encoders are two blocks deep (one windowed, one global) and see
256 px, so that the test takes seconds. Weights go through the converter's table.
"""

from functools import partial

import jax
import numpy as np
import pytest

import convert
from convert.tensor import Tensor
from convert.torch_file import write_torch
from samjax import Prompts, decode_masks, encode_image

pytestmark = pytest.mark.torch
SIZE = 256

SLOTS = {  # name -> (points in the input's pixels, labels, whether a mask is fed in)
    "point": ([[90, 120], [0, 0]], [1, -1], False),
    "points": ([[90, 120], [30.5, 200.25], [0, 0]], [1, 0, -1], False),
    "box": ([[20, 30], [200, 180]], [2, 3], False),
    "box, point and mask": ([[100, 90], [20, 30], [200, 180]], [0, 2, 3], True),
    "point and mask": ([[90, 120], [0, 0]], [1, -1], True),
}


@pytest.fixture(scope="module", params=["vit_b", "vit_l", "vit_h"])
def models(request, tmp_path_factory):
    """(official model, config, params)."""
    pytest.importorskip("torch")
    from official import official_sam

    model = official_sam(request.param, seed=3, depth=2, global_blocks=(1,), image_size=SIZE)
    path = tmp_path_factory.mktemp(request.param) / "model.pth"
    write_torch(path, {name: Tensor.of(value.numpy()) for name, value in model.state_dict().items()})
    source = convert.read(path)
    return model, source.config, source.params()


def relative(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def random_features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 16, 16, 256), np.float32)


def prompts(name: str) -> Prompts:
    points, labels, has_mask = SLOTS[name]
    logits = 4 * np.random.default_rng(1).standard_normal((1, 1, 64, 64), np.float32)
    return Prompts(np.float32([[points]]), np.int32([[labels]]), logits, np.array([[has_mask]]))


def official_decode(model, features, given: Prompts):
    """(logits (4, 64, 64), iou (4,)) of the official prompt encoder and decoder; box corners go in as boxes."""
    import torch

    labels = given.labels[0, 0]
    xy, corner = torch.from_numpy(given.points[0]), np.isin(labels, (2, 3))
    plain = np.isin(labels, (0, 1))
    points = (xy[:, plain], torch.from_numpy(labels[plain])[None]) if plain.any() else None
    boxes = xy[:, corner].reshape(1, 4) if corner.any() else None
    masks = torch.from_numpy(given.mask_logits) if given.has_mask.any() else None
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=masks)
    logits, iou = model.mask_decoder.predict_masks(
        image_embeddings=features, image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense)
    return logits[0], iou[0]


def test_the_encoder_equals_the_official_one(models):
    import torch

    model, config, params = models
    pixels = np.random.default_rng(7).standard_normal((1, SIZE, SIZE, 3), np.float32)
    with torch.no_grad():
        expected = model.image_encoder(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).numpy()
    found = jax.jit(partial(encode_image, config))(params, pixels)
    assert relative(found, expected.transpose(0, 2, 3, 1)) <= 1e-5


@pytest.mark.parametrize("name", SLOTS)
def test_the_decoder_equals_the_official_one(models, name):
    import torch

    model, config, params = models
    features, given = random_features(), prompts(name)
    with torch.no_grad():
        logits, iou = official_decode(model, torch.from_numpy(features.transpose(0, 3, 1, 2)), given)
    found = jax.jit(partial(decode_masks, config))(params, features, given)
    assert relative(found.logits[0, 0], logits.numpy()) <= 1e-5
    assert relative(found.iou[0, 0], iou.numpy()) <= 1e-5


def test_the_decoders_gradients_equal_the_official_ones(models):
    """Of a loss of logits and IoU, by the features and by every parameter of prompt encoder and decoder."""
    import torch

    model, config, params = models
    given = prompts("box, point and mask")
    random = np.random.default_rng(5)
    weigh, weigh_iou = random.standard_normal((4, 64, 64), np.float32), random.standard_normal(4, np.float32)

    features = torch.from_numpy(random_features().transpose(0, 3, 1, 2).copy()).requires_grad_()
    model.zero_grad()
    logits, iou = official_decode(model, features, given)
    ((logits * torch.from_numpy(weigh)).mean() + (iou * torch.from_numpy(weigh_iou)).sum()).backward()
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters()
                 if value.grad is not None and np.abs(value.grad.numpy()).max() > 0}

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def by_params_and_features(params, features):
        masks = decode_masks(config, params, features, given)
        return (masks.logits[0, 0] * weigh).mean() + (masks.iou[0, 0] * weigh_iou).sum()

    decoder = {name: params[name] for name in ("prompt_encoder", "mask_decoder")}
    by_params, by_features = by_params_and_features(decoder, random_features())
    assert relative(by_features, features.grad.numpy().transpose(0, 2, 3, 1)) <= 1e-4
    found = convert.flatten(jax.device_get(by_params))
    rows = [row for row in convert.rows(config) if row.official in gradients]
    assert len(rows) > 100
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for row in rows:
        expected = convert.KINDS[row.kind].to_jax(gradients[row.official])
        # Keys' biases have no gradient but for rounding (softmax ignores a shift): measured on the scale of the rest.
        error = np.abs(found[row.path] - expected).max() / max(np.abs(expected).max(), 1e-4 * largest)
        assert error <= 1e-3, f"{row.official}: {error:.1e}"
