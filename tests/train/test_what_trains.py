"""Parts of a model trained alone: the decoder on cached features, LoRA, any rule."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from optax.tree_utils import tree_get
from small_training import CONFIG, RECIPE, jitted, make_batch, params_of

from samjax.errors import InputError
from samjax.model.sam import encode_image
from samjax.predict import normalise
from samjax.train import lora
from samjax.train.step import init_state, make_step


def moved(recipe, batch, trains=None, config=CONFIG, params=None):
    """(paths that one step moved, its metrics, the state after it)."""
    state = init_state(config, recipe, params or params_of(config), jax.random.key(0), trains)
    after, metrics = jax.device_get(jitted(make_step(config, recipe, trains))(state, batch))
    before, then = (flatten_dict(jax.device_get(s.params), sep="/") for s in (state, after))
    assert before.keys() == then.keys()
    return {path for path in before if not np.array_equal(before[path], then[path])}, metrics, after


def test_decoder_alone_on_images_and_on_cached_features():
    recipe, batch = replace(RECIPE, train="decoder"), make_batch(0)
    paths, metrics, after = moved(recipe, batch)
    assert {path.split("/")[0] for path in paths} == {"prompt_encoder", "mask_decoder"}
    params = params_of()
    features = jitted(partial(encode_image, CONFIG))(params, normalise(CONFIG, batch["image"], batch["size"]))
    cached = {name: array for name, array in batch.items() if name != "image"} | {"features": features}
    decoder = {name: params[name] for name in ("prompt_encoder", "mask_decoder")}
    again, same, state = moved(recipe, cached, params=decoder)
    assert again == paths
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-5)
    # Gradients, not parameters: steps of Adam magnify the smallest of them, which are rounding alone.
    a, b = (jax.tree.leaves(tree_get(x.opt_state, "mu")) for x in (after, state))
    largest = max(np.abs(x).max() for x in a)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5 * largest)
    assert not any("image_encoder" in str(path) for path, _ in jax.tree.leaves_with_path(after.opt_state))


def test_cached_features_cannot_train_the_encoder():
    batch = make_batch(0)
    del batch["image"]
    batch["features"] = np.zeros((8, 2, 3, 16), np.float32)
    with pytest.raises(InputError, match="cannot train the image encoder"):
        moved(RECIPE, batch)


def test_lora_trains_its_factors_alone():
    recipe = replace(RECIPE, train="lora", lora_rank=2, lora_on="both", points=1)
    paths, metrics, after = moved(recipe, make_batch(0))
    factors = flatten_dict(after.params["lora"], sep="/")
    assert metrics["finite"] and {path.split("/")[0] for path in paths} == {"lora"}
    # In the first step A stands still, since B is zero; key biases are no factors.
    assert {path.removeprefix("lora/") for path in paths} <= {path for path in factors if path.endswith("lora_b")}
    assert len(paths) > 0.7 * len(factors) / 2
    merged = lora.merge(after.params)
    plain = params_of()
    assert jax.tree.structure(merged) == jax.tree.structure(plain)


def test_any_rule():
    trains = lambda path: path.endswith("bias") and path.startswith("mask_decoder/upscale")
    paths, _, after = moved(RECIPE, make_batch(0), trains)
    assert paths and all(trains(path) for path in paths)
    chosen = [path for path in flatten_dict(after.params, sep="/") if trains(path)]
    assert len(jax.tree.leaves(after.opt_state)) == 1 + 2 * len(chosen)
    with pytest.raises(InputError, match="nothing is trained"):
        init_state(CONFIG, RECIPE, params_of(), jax.random.key(0), lambda path: False)
