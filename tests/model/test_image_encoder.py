"""The ViT: equal to the official encoder, in every form that it can be run."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, SMALL_VIT, random_params
from golden_files import relative_error
from parity import random_encoder

from convert.model import flatten
from samjax.config import SamConfig, ViT
from samjax.model import image_encoder
from samjax.model.image_encoder import drop_path, group_shape
from samjax.model.resize import adapt_channels, resize_positions
from samjax.model.sam import encode_image, init
from samjax.model.stack import stack_blocks, unstack_blocks

WHOLE = (pytest.mark.slow, pytest.mark.whole)


@pytest.mark.parametrize("name", ["vit_toy_random", pytest.param("vit_b_random", marks=WHOLE),
                                  pytest.param("vit_h_d4_random", marks=WHOLE)])
def test_equals_official(name):
    golden = np.load(DATA / f"{name}.npz")
    config, params, pixels = random_encoder(golden)
    features = jax.jit(partial(encode_image, config))(params, pixels)
    channels, rows_, columns = (slice(None, None, n) for n in golden["output_stride"][-3:])
    assert relative_error(features.transpose(0, 3, 1, 2)[:, channels, rows_, columns], golden["output_f32"]) <= 1e-5


def test_intermediates_equal_official():
    """Block by block: says where an error begins."""
    golden = np.load(DATA / "vit_toy_random.npz")
    config, params, pixels = random_encoder(golden)
    of_blocks = lambda module, _: isinstance(module, image_encoder.Block | image_encoder.PatchEmbed)
    encoder = image_encoder.ImageEncoder(config)
    _, state = encoder.apply({"params": params["image_encoder"]}, pixels, capture_intermediates=of_blocks)
    found = {name: branch["__call__"][0] for name, branch in state["intermediates"].items()}
    assert len(found) == 1 + config.encoder.depth
    for name, value in found.items():
        expected = golden[f"inter/{name.replace('blocks_', 'block')}/s"]
        assert relative_error(value[:, ::8, ::8, ::16], expected) <= 1e-5, name


# -- a small model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(2, *SMALL_VIT.image_size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def features(small_vit, pixels):
    config, params = small_vit
    return jax.jit(partial(encode_image, config))(params, pixels)


def value_and_gradient(config):
    loss = lambda params, pixels: jnp.sin(encode_image(config, params, pixels)).sum()
    return jax.jit(jax.value_and_grad(loss))


def assert_same_gradients(found, expected, tolerance=1e-4):
    """Relative to the largest gradient, since some are all but zero."""
    found, expected = flatten(found), flatten(expected)
    assert set(found) == set(expected)
    largest = max(float(np.abs(x).max()) for x in expected.values())
    for name, x in expected.items():
        assert np.abs(found[name] - x).max() <= tolerance * largest, name


@pytest.fixture(scope="module")
def gradients(small_vit, pixels):
    config, params = small_vit
    return value_and_gradient(config)(params, pixels)


def test_images_of_a_batch_do_not_meet(small_vit, pixels, features):
    config, params = small_vit
    assert features.dtype == jnp.float32 and features.shape == (2, *config.grid, config.channels)
    alone = jax.jit(partial(encode_image, config))(params, pixels[1:])
    assert relative_error(features[1:], alone) <= 1e-5


def test_every_parameter_matters(gradients):
    for name, x in flatten(gradients[1]["image_encoder"]).items():
        assert np.isfinite(x).all() and np.abs(x).max() > 0, name


@pytest.mark.parametrize("global_blocks", [(1, 3), (3,), (0, 1, 2, 3)])
def test_scan_equals_unrolled(pixels, global_blocks):
    config = replace(SMALL_VIT, encoder=replace(SMALL_VIT.encoder, global_blocks=global_blocks))
    params = random_params(config)
    scanned, stacked = stack_blocks(config, params)
    assert scanned.encoder.scan
    shapes = jax.eval_shape(partial(init, scanned), jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    assert relative_error(jax.jit(partial(encode_image, scanned))(stacked, pixels),
                          jax.jit(partial(encode_image, config))(params, pixels)) <= 1e-5


def test_gradients_of_the_scan(small_vit, pixels, gradients):
    config, stacked = stack_blocks(*small_vit)
    _, found = value_and_gradient(config)(stacked, pixels)
    assert_same_gradients(unstack_blocks(config, found)[1], gradients[1])


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_stacking_is_undone_exactly(small_vit, array):
    config, params = small_vit
    params = jax.tree.map(array, params)
    back_config, back = unstack_blocks(*stack_blocks(config, params))
    assert back_config == config and jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params)):
        assert a.dtype == b.dtype and np.array_equal(a, b) and isinstance(a, np.ndarray) == isinstance(b, np.ndarray)
    scanned = stack_blocks(config, params)
    assert stack_blocks(*scanned)[1] is scanned[1] and unstack_blocks(config, params)[1] is params


def test_uneven_global_blocks_cannot_be_stacked(small_tiny):
    for blocks in ((1, 2), (0, 2), ()):
        vit = replace(SMALL_VIT.encoder, global_blocks=blocks)
        with pytest.raises(ValueError, match="equal distances"):
            stack_blocks(replace(SMALL_VIT, encoder=vit), {"image_encoder": {}})
    assert stack_blocks(*small_tiny) == small_tiny
    assert group_shape(ViT()) == (4, 3)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_changes_nothing(small_vit, pixels, gradients, scan):
    config, params = stack_blocks(*small_vit) if scan else small_vit
    config = replace(config, encoder=replace(config.encoder, remat=True))
    value, found = value_and_gradient(config)(params, pixels)
    assert abs(value - gradients[0]) <= 1e-5 * abs(gradients[0]) + 1e-3
    assert_same_gradients(unstack_blocks(config, found)[1], gradients[1])


def test_remat_saves_memory():
    """In a scan; without one XLA undoes it on a CPU, though not on accelerators."""
    vit = ViT(64, 8, 4, (3, 7), window=8, scan=True)
    pixels = jax.ShapeDtypeStruct((4, 256, 256, 3), jnp.float32)

    def peak(remat):
        config = SamConfig("custom", replace(vit, remat=remat), SMALL_VIT.decoder, 32, (256, 256))
        params = jax.eval_shape(partial(init, config), jax.random.key(0))
        return value_and_gradient(config).lower(params, pixels).compile().memory_analysis().temp_size_in_bytes

    assert peak(True) < 0.5 * peak(False)


# -- drop path ---------------------------------------------------------------------------------------------------


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    y = jnp.ones((4000, 2, 3, 4))
    found = np.asarray(drop_path(y, 0.25, jax.random.key(0)))
    per_image = found.reshape(4000, -1)
    assert (per_image == per_image[:, :1]).all()
    assert set(np.unique(per_image)) == {0.0, np.float32(1 / 0.75)}
    assert abs((per_image[:, 0] > 0).mean() - 0.75) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert np.array_equal(drop_path(y, 0.0, jax.random.key(1)), y)


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_of_the_encoder(small_vit, pixels, features, scan):
    config, params = stack_blocks(*small_vit) if scan else small_vit
    config = replace(config, encoder=replace(config.encoder, drop_path=0.5))
    encode = jax.jit(lambda key: encode_image(config, params, pixels, key=key))
    one, again, other = (encode(jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.allclose(one, other)
    assert relative_error(jax.jit(partial(encode_image, config))(params, pixels), features) <= 1e-5  # no key: none
    still = replace(config, encoder=replace(config.encoder, drop_path=0.0))
    assert relative_error(jax.jit(lambda key: encode_image(still, params, pixels, key=key))(jax.random.key(0)),
                          features) <= 1e-5


def test_drop_path_rises_with_depth(monkeypatch, small_vit, pixels):
    config, params = small_vit
    config = replace(config, encoder=replace(config.encoder, drop_path=0.6))
    seen = []
    monkeypatch.setattr(image_encoder, "drop_path", lambda y, rate, key: seen.append((float(rate), key)) or y)
    encode_image(config, params, pixels, key=jax.random.key(0))
    assert np.allclose([rate for rate, _ in seen], [0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6])
    assert len({tuple(np.asarray(jax.random.key_data(key))) for _, key in seen}) == 8  # each its own


# -- sizes and channels --------------------------------------------------------------------------------------------


def test_own_size_is_the_identity(small_vit):
    config, params = small_vit
    assert resize_positions(config, params, config.image_size) == (config, params)


@pytest.mark.parametrize("size", [(16, 16), (48, 64), (96, 64), (64, 256), 128, 80])
def test_any_size_that_is_a_multiple_of_16(small_vit, size):
    config, params = resize_positions(*small_vit, size)
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    pixels = np.random.default_rng(0).normal(size=(1, *config.image_size, 3)).astype(np.float32)
    found = jax.jit(partial(encode_image, config))(params, pixels)
    assert found.shape == (1, *config.grid, config.channels) and bool(jnp.isfinite(found).all())


@pytest.mark.torch
def test_resized_tables_are_the_official_ones(small_vit):
    """Relative tables as the official get_rel_pos interpolates them; the absolute table as torch's bicubic does."""
    torch = pytest.importorskip("torch")
    from torch.nn.functional import interpolate

    config, params = small_vit
    resized, found = resize_positions(config, params, (128, 240))
    for i in (1, 3):
        for axis, side in zip("hw", resized.grid):
            name = f"rel_pos_{axis}"
            table = torch.tensor(params["image_encoder"][f"blocks_{i}"]["attn"][name])
            expected = interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T
            assert relative_error(found["image_encoder"][f"blocks_{i}"]["attn"][name], expected) <= 1e-5
    table = torch.tensor(params["image_encoder"]["pos_embed"]).permute(2, 0, 1)[None]
    expected = interpolate(table, size=resized.grid, mode="bicubic")[0].permute(1, 2, 0)
    # torch's cubic has a = -0.75, jax's -0.5: alike, not equal
    assert np.corrcoef(np.ravel(found["image_encoder"]["pos_embed"]), np.ravel(expected))[0, 1] > 0.99


def test_windowed_tables_keep_their_size(small_vit):
    _, params = resize_positions(*small_vit, 256)
    for i in (0, 2):
        assert params["image_encoder"][f"blocks_{i}"]["attn"]["rel_pos_h"] is \
            small_vit[1]["image_encoder"][f"blocks_{i}"]["attn"]["rel_pos_h"]


@pytest.mark.parametrize("size", [100, (64, 65), 0, (-16, 16)])
def test_other_sizes_are_refused(small_vit, size):
    with pytest.raises(ValueError, match="multiples of 16"):
        resize_positions(*small_vit, size)


def test_stacked_models_are_not_resized(small_vit):
    with pytest.raises(ValueError, match="before stacking"):
        resize_positions(*stack_blocks(*small_vit), 128)


@pytest.mark.parametrize("model", ["small_vit", "small_tiny"])
@pytest.mark.parametrize("channels", [1, 4, 7])
def test_other_channels(request, model, channels):
    config, params = request.getfixturevalue(model)
    grey = np.random.default_rng(0).normal(size=(1, *config.image_size, 1)).astype(np.float32)
    adapted, kernels = adapt_channels(config, params, channels)
    assert adapted.in_channels == len(adapted.pixel_mean) == len(adapted.pixel_std) == channels
    encode = lambda config, params, n: jax.jit(partial(encode_image, config))(params, np.repeat(grey, n, -1))
    # a grey picture gives the same whatever the number of channels it is repeated in
    assert relative_error(encode(adapted, kernels, channels), encode(config, params, 3)) <= 1e-4
    assert adapt_channels(config, params, 3) == (config, params)


def test_bfloat16_is_close(small_vit, pixels, features):
    config, params = small_vit
    found = jax.jit(partial(encode_image, replace(config, dtype="bfloat16")))(params, pixels)
    assert found.dtype == jnp.float32
    assert 1e-6 < relative_error(found, features) <= 5e-2


def test_wrong_shapes_are_refused(small_vit, pixels):
    config, params = small_vit
    for wrong in (pixels.transpose(0, 2, 1, 3), pixels[..., :2], pixels[0], pixels[:, :32]):
        with pytest.raises(ValueError, match="do not match"):
            encode_image(config, params, wrong)
    for bad in (dict(image_size=(0, 64)), dict(image_size=(60, 64)), dict(dtype="float16"), dict(resize="cubic"),
                dict(normalise="none")):
        with pytest.raises(ValueError):
            replace(config, **bad)


@pytest.mark.parametrize("remat", [False, True, "products"])
def test_every_rematerialisation_is_read_back(remat):
    from samjax.config import VIT_B, ViT, from_dict, to_dict

    config = replace(VIT_B, encoder=replace(VIT_B.encoder, remat=remat))
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ValueError, match="remat 'product' is none of"):
        ViT(remat="product")
    with pytest.raises(ValueError, match="remat 1 is none of"):
        from_dict(to_dict(VIT_B) | {"encoder": {"kind": "vit", "remat": 1}})
