"""TinyViT: equal to the official encoder; BatchNorm folded or not; the same in the form of every platform."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_TINY
from golden_files import relative_error

from convert.model import flatten, nest
from convert.table import KINDS, rows
from samjax.config import VIT_T
from samjax.model import layers, tiny_vit
from samjax.model.fold import fold_batch_norm
from samjax.model.layers import grouped_conv, shifted_conv
from samjax.model.resize import resize_positions
from samjax.model.sam import encode_image, init


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(2, *SMALL_TINY.image_size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def features(small_tiny, pixels):
    config, params = small_tiny
    return jax.jit(partial(encode_image, config))(params, pixels)


@pytest.mark.torch
@pytest.mark.slow
def test_equals_the_official_encoder_live():
    """MobileSAM at its real size with every tensor random."""
    torch = pytest.importorskip("torch")
    from official import official_mobile_sam

    model = official_mobile_sam(seed=11)
    config = replace(VIT_T, encoder=replace(VIT_T.encoder, fold_batch_norm=False))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = nest({row.path: np.ascontiguousarray(KINDS[row.kind].to_jax(state[row.official]))
                   for row in rows(config)})
    pixels = np.random.default_rng(0).normal(size=(1, 1024, 1024, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model.image_encoder(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    found = jax.jit(partial(encode_image, config))(params, pixels)
    assert relative_error(found.transpose(0, 3, 1, 2), expected) <= 2e-5


def test_folding_batch_norm_changes_nothing(small_tiny, pixels, features):
    config, params = fold_batch_norm(*small_tiny)
    assert config.encoder.fold_batch_norm
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    assert not any("norm_" in name.rsplit("/", 1)[-1] for name in flatten(params["image_encoder"]))
    assert relative_error(jax.jit(partial(encode_image, config))(params, pixels), features) <= 1e-5
    assert fold_batch_norm(config, params) == (config, params)


def test_folding_leaves_a_vit_alone(small_vit):
    assert fold_batch_norm(*small_vit) == small_vit


def test_images_of_a_batch_do_not_meet(small_tiny, pixels, features):
    config, params = small_tiny
    assert features.dtype == jnp.float32 and features.shape == (2, *config.grid, config.channels)
    alone = jax.jit(partial(encode_image, config))(params, pixels[1:])
    assert relative_error(features[1:], alone) <= 1e-5


def test_other_platforms_forms_give_the_same(small_tiny, pixels, features, monkeypatch):
    """What a GPU or TPU would run: whole grids, grouped convolutions."""
    chosen = []

    def elsewhere(*args, default, **platforms):
        chosen.append(set(platforms))
        return default(*args)

    for module in (layers, tiny_vit):
        monkeypatch.setattr(module.lax, "platform_dependent", elsewhere)
    config, params = small_tiny
    assert relative_error(jax.jit(lambda *args: encode_image(config, *args))(params, pixels), features) <= 1e-5
    assert {"cpu"} in chosen and all("cpu" in names for names in chosen)


@pytest.mark.parametrize("platform, shifted", [("cpu", True), ("cuda", True), ("tpu", False)])
def test_each_platform_has_its_form_of_the_depthwise_convolution(platform, shifted):
    shapes = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)
    text = jax.jit(layers.depthwise_conv).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" not in text) is shifted


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("h, w", [(6, 9), (7, 8), (1, 1), (2, 2), (16, 16)])
def test_both_forms_of_the_depthwise_convolution(h, w, stride):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, h, w, 5)), random.normal(size=(3, 3, 1, 5))
    padded, kernel = jnp.asarray(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), jnp.float32), jnp.asarray(
        kernel, jnp.float32)
    found = shifted_conv(padded, kernel, stride)
    assert found.shape == (2, (h - 1) // stride + 1, (w - 1) // stride + 1, 5)
    assert relative_error(found, grouped_conv(padded, kernel, stride)) <= 1e-6
    y, x_ = (found.shape[1] - 1) // 2, found.shape[2] - 1  # one cell by hand
    patch = np.asarray(padded)[:, y * stride:y * stride + 3, x_ * stride:x_ * stride + 3]
    assert np.allclose(found[:, y, x_], (patch * np.asarray(kernel)[..., 0, :]).sum((1, 2)), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_strips_give_the_whole(rows):
    """A hidden layer made some rows at a time equals the one made at once."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    x = draw(2, 6, 5, 4)
    weights = ((draw(1, 1, 4, 16), draw(16)), (draw(3, 3, 1, 16), draw(16)), (draw(1, 1, 16, 4), draw(4)))
    whole = tiny_vit.bottleneck(x, weights)
    old = tiny_vit.strip_rows
    try:
        tiny_vit.strip_rows = lambda *_, **__: rows
        assert relative_error(tiny_vit.bottleneck(x, weights), whole) <= 1e-6
    finally:
        tiny_vit.strip_rows = old


def test_strip_rows_are_divisors_within_the_limit():
    for h, w, positions in [(64, 64, 512), (7, 100, 50), (12, 5, 30), (1, 1, 1), (13, 2, 512)]:
        rows_ = layers.strip_rows(h, w, positions)
        assert h % rows_ == 0 and (rows_ == 1 or rows_ * w <= positions)
        assert all(h % r or r * w > positions for r in range(rows_ + 1, h + 1))


@pytest.mark.parametrize("window", [1, 2, 5, 7])
def test_offsets_are_in_the_official_order(window):
    """The official table numbers |dy|, |dx| as it first meets them, going through pairs of cells row by row."""
    cells = [(y, x) for y in range(window) for x in range(window)]
    numbers, expected = {}, []
    for y, x in cells:
        expected.append([numbers.setdefault((abs(y - v), abs(x - u)), len(numbers)) for v, u in cells])
    assert tiny_vit.offsets(window).tolist() == expected


@pytest.mark.parametrize("size", [(16, 16), (48, 80), 32])
def test_any_size_that_is_a_multiple_of_16(small_tiny, size):
    """Grids smaller than the windows among them."""
    config, params = resize_positions(*small_tiny, size)
    pixels = np.random.default_rng(0).normal(size=(1, *config.image_size, 3)).astype(np.float32)
    found = jax.jit(partial(encode_image, config))(params, pixels)
    assert found.shape == (1, *config.grid, config.channels) and bool(jnp.isfinite(found).all())
    assert params is small_tiny[1]


@pytest.mark.slow
def test_gradients_reach_all_but_the_statistics(small_tiny, pixels):
    config, params = small_tiny
    loss = lambda params: jnp.sin(encode_image(config, params, pixels)).sum()
    for name, x in flatten(jax.jit(jax.grad(loss))(params)["image_encoder"]).items():
        still = name.endswith(("norm_mean", "norm_var"))
        assert np.isfinite(x).all() and (np.abs(x).max() > 0) != still, name


def test_drop_path_and_remat(small_tiny, pixels, features):
    config, params = small_tiny
    config = replace(config, encoder=replace(config.encoder, drop_path=0.5, remat=True))
    encode = jax.jit(lambda key: encode_image(config, params, pixels, key=key))
    one, again, other = (encode(jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.allclose(one, other)
    assert relative_error(jax.jit(partial(encode_image, config))(params, pixels), features) <= 1e-5


def test_bfloat16_is_close(small_tiny, pixels, features):
    config, params = small_tiny
    found = jax.jit(partial(encode_image, replace(config, dtype="bfloat16")))(params, pixels)
    assert found.dtype == jnp.float32
    assert 1e-6 < relative_error(found, features) <= 5e-2
