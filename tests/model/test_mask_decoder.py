"""The mask decoder beyond `test_official`: the real ViT-H weights, many objects, dropout, precision."""

import os
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, SMALL_VIT, random_params
from golden_files import relative_error

from convert.model import nest
from convert.table import KINDS, rows
from samjax.config import VIT_H
from samjax.model.mask_decoder import softmax_of_tokens
from samjax.model.sam import Prompts, decode_masks


@pytest.fixture(scope="module")
def vith():
    """The real ViT-H decoder, read from the file that $SAMJAX_VITH_DECODER names."""
    path = os.environ.get("SAMJAX_VITH_DECODER")
    if not path:
        pytest.skip("SAMJAX_VITH_DECODER names no sam_vit_h_decode.onnx (see experiments/vith_decoder.py)")
    from vith_decoder import read_tensors

    tensors = read_tensors(path)
    return nest({row.path: np.ascontiguousarray(KINDS[row.kind].to_jax(tensors[row.official]))
                 for row in rows(VIT_H) if row.official in tensors})


def vith_goldens():
    from golden_files import VitHGolden

    folder = os.environ.get("SAMJAX_REFERENCE")
    paths = [DATA / "vith_decoder_slick.npz"]
    if folder:
        paths += [os.path.join(folder, "golden", f"vith_decoder_{name}.npz") for name in ("slick", "burn_scar")]
    return [VitHGolden(path) for path in paths]


def test_the_real_vit_h_decoder_equals_its_export(vith):
    decode = jax.jit(partial(decode_masks, VIT_H))
    for golden in vith_goldens():
        for name in golden.names:
            masks = decode(vith, golden.features, golden.slots(name))
            errors = golden.errors(name, masks)
            assert errors["logits"] <= 1e-3 and errors["iou"] <= 1e-3, (golden.path, name, errors)


# -- a small decoder on a grid whose sides differ ----------------------------------------------------------------

CONFIG = replace(SMALL_VIT, channels=256, decoder=replace(SMALL_VIT.decoder, mlp=2048))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def draw(b, n, t, seed=0):
    random = np.random.default_rng(seed)
    features = random.normal(size=(b, *CONFIG.grid, 256)).astype(np.float32)
    return features, Prompts(random.uniform(0, 64, (b, n, t, 2)).astype(np.float32),
                             random.integers(-1, 4, (b, n, t), np.int32))


@pytest.mark.torch
def test_equals_official_on_any_grid(params):
    """Several objects at once; logits, IoU."""
    torch = pytest.importorskip("torch")
    import torchvision_standin

    torchvision_standin.install()
    from segment_anything.modeling import MaskDecoder, TwoWayTransformer

    official = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)).eval()
    flat = {row: params for row in rows(CONFIG) if row.path.startswith("mask_decoder")}
    state = {}
    for row in flat:
        value = params
        for part in row.path.split("/"):
            value = value[part]
        state[row.official.removeprefix("mask_decoder.")] = torch.from_numpy(
            np.ascontiguousarray(KINDS[row.kind].to_torch(value)))
    official.load_state_dict(state, strict=True)
    features, prompts = draw(1, 3, 4)
    from samjax.model.prompt_encoder import PromptEncoder

    encoder = partial(PromptEncoder(CONFIG).apply, {"params": params["prompt_encoder"]})
    tokens, code = encoder(prompts.points, prompts.labels, method="sparse"), encoder(method="positions")
    dense = np.broadcast_to(params["prompt_encoder"]["no_mask"][:, None, None], (3, 256, *CONFIG.grid))
    with torch.no_grad():
        logits, iou = official.predict_masks(
            image_embeddings=torch.from_numpy(features.transpose(0, 3, 1, 2).copy()),
            image_pe=torch.from_numpy(np.array(code).transpose(2, 0, 1)[None].copy()),
            sparse_prompt_embeddings=torch.from_numpy(np.array(tokens)[0]),
            dense_prompt_embeddings=torch.from_numpy(dense.copy()))
    found = jax.jit(partial(decode_masks, CONFIG))(params, features, prompts)
    assert relative_error(found.logits[0], logits.numpy()) <= 1e-5
    assert relative_error(found.iou[0], iou.numpy()) <= 1e-5


def test_images_and_objects_do_not_meet(params):
    features, prompts = draw(2, 3, 4)
    decode = jax.jit(partial(decode_masks, CONFIG))
    together = decode(params, features, prompts)
    assert together.logits.shape == (2, 3, 4, *CONFIG.mask_size) and together.iou.shape == (2, 3, 4)
    one = decode(params, features[1:], jax.tree.map(lambda x: x[1:, 2:], prompts))
    assert relative_error(together.logits[1:, 2:], one.logits) <= 1e-5
    other = decode(params, features, jax.tree.map(lambda x: x.at[0, 1].set(1) if x.ndim == 3 else x,
                                                  jax.tree.map(jnp.asarray, prompts)))
    changed = [[relative_error(other.logits[b, n], together.logits[b, n]) > 1e-4 for n in range(3)] for b in range(2)]
    assert changed == [[False, True, False], [False] * 3]


def test_dropout_needs_a_key(params):
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, dropout=0.3))
    features, prompts = draw(1, 2, 3)
    decode = jax.jit(lambda seed: decode_masks(config, params, features, prompts, key=jax.random.key(seed)).logits)
    assert np.array_equal(decode(0), decode(0)) and relative_error(decode(1), decode(0)) > 1e-3
    plain = jax.jit(partial(decode_masks, CONFIG))(params, features, prompts)
    assert relative_error(jax.jit(partial(decode_masks, config))(params, features, prompts).logits,
                          plain.logits) <= 1e-6


def test_bfloat16_is_close(params):
    features, prompts = draw(1, 2, 3)
    exact = jax.jit(partial(decode_masks, CONFIG))(params, features, prompts)
    rough = jax.jit(partial(decode_masks, replace(CONFIG, dtype="bfloat16")))(params, features, prompts)
    assert rough.logits.dtype == rough.iou.dtype == jnp.float32
    assert 1e-6 < relative_error(rough.logits, exact.logits) <= 5e-2


def test_softmax_of_tokens_equals_jax_in_value_and_derivatives_of_either_mode():
    random = np.random.default_rng(0)
    scores = jnp.asarray(random.normal(size=(2, 3, 5, 2, 7)) * 9, jnp.float32)
    scores = scores.at[:, 1, 4].set(-jnp.inf)  # an empty slot
    weights = jnp.asarray(random.normal(size=scores.shape), jnp.float32)
    plain = lambda x: jax.nn.softmax(x, axis=2)
    finite = lambda f: lambda x: (f(jnp.where(jnp.isfinite(scores), x, -jnp.inf)) * weights).sum()
    at = jnp.where(jnp.isfinite(scores), scores, 0.0)
    np.testing.assert_allclose(softmax_of_tokens(scores), plain(scores), atol=1e-6)
    np.testing.assert_allclose(jax.grad(finite(softmax_of_tokens))(at), jax.grad(finite(plain))(at), atol=1e-6)
    forwards = lambda f: jax.vmap(lambda t: jax.jvp(finite(f), (at,), (t,))[1])(jnp.stack([weights, weights**2]))
    np.testing.assert_allclose(forwards(softmax_of_tokens), forwards(plain), rtol=1e-5, atol=1e-5)
    hessian_times = lambda f: jax.jvp(jax.grad(finite(f)), (at,), (weights,))[1]
    np.testing.assert_allclose(hessian_times(softmax_of_tokens), hessian_times(plain), atol=1e-5)
