"""The training step: equal on one device and on many, blind to padding, and the gradient of what it says."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives, unexpected
from flax.traverse_util import flatten_dict
from small_training import CONFIG, RECIPE, jitted, make_batch, params_of, quick_program

from samjax.errors import InputError
from samjax.model.sam import Prompts, decode_masks
from samjax.parallel import MeshStep, PmapStep
from samjax.sharding import RULES, make_mesh
from samjax.train import rounds, simulate
from samjax.train.losses import judge, most_confident
from samjax.train.optim import split, unite
from samjax.train.step import check_batch, in_parts, init_state, make_step, training_config

STEPS = 5


def start(recipe=RECIPE, key=3):
    return jax.tree.map(np.asarray, init_state(CONFIG, recipe, params_of(), jax.random.key(key)))


@cache
def program(recipe=RECIPE):
    return jitted(make_step(CONFIG, recipe))


def take(state, batch, recipe=RECIPE):
    """One step on one device."""
    return program(recipe)(*jax.device_put((state, batch), jax.devices()[0]))


@cache
def run_on_one(steps=STEPS, **changes):
    """(final state, metrics of each step, number of compiled programs after each) on one device."""
    recipe = replace(RECIPE, **changes)
    state, history, programs = start(recipe), [], []
    for i in range(steps):
        state, metrics = take(state, make_batch(i), recipe)
        history.append(jax.device_get(metrics))
        programs.append(program(recipe)._cache_size())
    return jax.device_get(state), history, programs


def assert_same(run, other, tolerance=1e-5):
    """Equal metrics and parameters.

    A key's bias cancels in the softmax: its gradient is rounding alone, which Adam makes steps of, so it is left out.
    """
    for a, b in zip(run[1], other[1], strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)
    for (path, a), b in zip(flatten_dict(run[0].params, sep="/").items(), jax.tree.leaves(other[0].params)):
        if path.endswith("qkv/bias"):
            a, b = (np.delete(x, np.s_[16:32]) for x in (a, b))
        if not path.endswith("/k/bias"):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=path)


def test_one_program_serves_all_steps():
    state, history, programs = run_on_one()
    assert programs[0] == programs[-1] and state.step == STEPS
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    np.testing.assert_allclose([m["learning_rate"] for m in history], 8e-4 * np.arange(1, 6) / 5, rtol=1e-6)


def test_everything_moves_but_buffers():
    before, after = flatten_dict(start().params, sep="/"), flatten_dict(run_on_one()[0].params, sep="/")
    still = {path for path in before if np.array_equal(before[path], after[path])}
    # Here a key's bias is not even used, and a mask that never was the best learned nothing.
    still = {path for path in still if not path.endswith("token_to_image/k/bias") and "/hyper_" not in path}
    assert still == {"prompt_encoder/gaussian"}


def test_accumulation_equals_the_large_batch():
    assert_same(run_on_one(), run_on_one(accumulate=4))


def test_pmap_equals_one_device():
    many = PmapStep(make_step(CONFIG, RECIPE))
    state, history = many.place(start()), []
    run = quick_program(many, state, make_batch(0))
    for i in range(STEPS):
        state, metrics = run(state, many.feed(make_batch(i)))
        history.append(many.fetch(metrics))
    for leaf in jax.tree.leaves(jax.device_get(state.params)):
        assert np.array_equal(leaf[0], leaf[7])
    assert_same(run_on_one(), (many.fetch(state), history))


@pytest.mark.parametrize("group, kinds", [(1, {"all-reduce"}), (8, {"all-gather", "all-reduce", "reduce-scatter"})])
def test_a_mesh_equals_one_device(group, kinds):
    """Data-parallel, and with parameters divided. Each gradient is sent once, however many rounds it is added up in,
    and no activation."""
    many = MeshStep(make_step(CONFIG, RECIPE), make_mesh(group), RULES if group > 1 else None)
    state, history = many.place(start()), []
    program = quick_program(many, state, make_batch(0))
    found = collectives(program.as_text())
    shapes = [leaf.shape for leaf in jax.tree.leaves(params_of())]
    assert {each.kind for each in found} <= kinds and not unexpected(found, shapes, kinds, small=16)
    assert {each.times for each in found} == {1}
    for i in range(STEPS):
        state, metrics = program(state, many.feed(make_batch(i)))
        history.append(many.fetch(metrics))
    assert_same(run_on_one(), (many.fetch(state), history))


def test_bfloat16_over_a_mesh_is_near_to_float32_on_one_device():
    many = MeshStep(make_step(replace(CONFIG, dtype="bfloat16"), RECIPE), make_mesh(2), RULES)
    state = many.place(start())
    state, metrics = quick_program(many, state, make_batch(0))(state, many.feed(make_batch(0)))
    expected, found = run_on_one(1)[1][0], many.fetch(metrics)
    for name, tolerance in (("loss", 0.02), ("focal", 0.02), ("dice", 0.02), ("grad_norm", 0.1)):
        assert found[name] == pytest.approx(expected[name], rel=tolerance), name
    assert found["finite"] and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(many.fetch(state).params))


def test_padding_changes_nothing():
    """Two more objects an image and four more images, all invalid, whatever they hold."""
    state, batch = start(), make_batch(0)
    more = make_batch(9, images=12, objects=4)
    for name, array in batch.items():
        more[name][tuple(map(slice, array.shape))] = array
    more["valid"][8:] = more["valid"][:, 2:] = False
    more["masks"][8, 0] = False
    state, metrics = jax.device_get(take(state, more))
    first = run_on_one(1)
    assert_same(first, (state, [metrics]), 1e-6)
    assert metrics["objects"] == batch["valid"].sum()


def test_a_bad_step_changes_nothing():
    state = start()
    broken = unite(state.params)
    broken["mask_decoder"]["iou_token"] = np.full_like(broken["mask_decoder"]["iou_token"], np.nan)
    state = replace(state, params=broken)
    after, metrics = jax.device_get(take(state, make_batch(0)))
    assert not metrics["finite"] and not np.isfinite(metrics["loss"])
    assert after.step == 1
    for a, b in zip(jax.tree.leaves((after.params, after.opt_state)), jax.tree.leaves((broken, state.opt_state))):
        np.testing.assert_array_equal(a, b)


def test_no_objects_at_all():
    """A batch without a valid object is no reason for NaN."""
    batch = make_batch(0)
    _, metrics = take(start(), batch | {"masks": np.zeros_like(batch["masks"])})
    assert metrics["finite"] and metrics["loss"] == 0 and metrics["grad_norm"] == 0 and metrics["objects"] == 1


def test_keys_follow_from_the_run_and_the_step():
    a, b = (run_on_one(1)[1][0]["loss"] for _ in range(2))
    assert a == b
    losses = {float(take(replace(start(key=key), step=np.int32(at)), make_batch(0))[1]["loss"])
              for key, at in ((3, 0), (3, 1), (4, 0))}
    assert len(losses) == 3 and float(a) in losses


def plain_play(config, recipe, params, features, mask, size, key, plain):
    """The rounds of one object, one after the other, as the paper tells them: the sum of their losses.

    plain: the round in the middle that brings no new point.
    """
    grid = mask.shape
    inside = simulate.inside_picture(config, grid, size)
    first, _ = jax.random.split(jax.random.fold_in(key, recipe.rounds))
    points, labels = simulate.first_prompt(config, recipe, first, mask, inside, size)
    total, logits, slot = 0.0, None, 2
    for i in range(recipe.rounds):
        click, _ = jax.random.split(jax.random.fold_in(key, i))
        if i not in (0, plain, recipe.rounds - 1):
            prediction = rounds.enlarge(logits, grid) > 0
            points, labels = simulate.correct(config, click, points, labels, slot, mask, prediction, inside, size)
            slot += 1
        prompts = Prompts(points[None, None], labels[None, None])
        if i:
            prompts = prompts._replace(mask_logits=logits[None, None], has_mask=jnp.ones((1, 1), bool))
        answer = decode_masks(config, params, features[None], prompts, multimask=i == 0)
        low, iou = answer.logits[0, 0], answer.iou[0, 0]
        allowed = jnp.ones(len(iou), bool)
        total += judge(recipe, rounds.enlarge(low, grid), iou, mask, inside, allowed).loss
        logits = jax.lax.stop_gradient(low[most_confident(iou, allowed)])
    return total


def test_the_gradient_is_that_of_plain_rounds():
    """Against a loop that jax.grad goes through, for masks finer than the logits."""
    config, recipe, batch = CONFIG, replace(RECIPE, points=2), make_batch(0, images=1)
    params = split(params_of(), lambda path: not path.startswith("image_encoder"))[0]
    features = jnp.asarray(np.random.default_rng(1).standard_normal((1, *config.grid, config.channels), np.float32))
    masks = batch["masks"].repeat(2, 2).repeat(2, 3)
    keys = jax.random.split(jax.random.key(5), (1, 2))
    objects = rounds.Objects(masks, np.ones((1, 2), bool), batch["size"], keys)
    wanted = {"params": params, "features": features}
    gradients, sums = jitted(partial(rounds.play, config, recipe))(wanted, {}, None, objects, jnp.float32(0.5))

    @partial(jitted, static_argnums=3)
    @jax.value_and_grad
    def alone(wanted, mask, key, plain):
        return plain_play(config, recipe, wanted["params"], wanted["features"][0], mask, batch["size"][0], key, plain)

    def of_object(j):
        _, place = jax.random.split(jax.random.fold_in(keys[0, j], recipe.rounds))
        return alone(wanted, masks[0, j], keys[0, j], int(simulate.plain_round(recipe, place)))

    value, expected = jax.tree.map(jnp.add, of_object(0), of_object(1))
    np.testing.assert_allclose(sums.loss.sum(), value, rtol=1e-5)
    for (path, a), b in zip(flatten_dict(gradients, sep="/").items(), jax.tree.leaves(expected)):
        np.testing.assert_allclose(2 * a, b, rtol=1e-3, atol=2e-5 * max(np.abs(b).max(), 0.1), err_msg=path)


@pytest.mark.parametrize("i, boxed, both", [(0, True, True), (0, False, False), (1, True, False)])
def test_the_first_answer_to_a_box_trains_the_single_mask(i, boxed, both):
    """Only that: a point is never answered with the single mask first, and later rounds train it anyway."""
    random = np.random.default_rng(0)
    logits, iou = random.normal(size=(4, 8, 12)).astype(np.float32), random.normal(size=4).astype(np.float32)
    mask, inside = random.random((8, 12)) < 0.4, np.ones((8, 12), bool)
    loss = lambda recipe: rounds._judge(recipe, i, mask, inside, np.array([32, 48]), ((logits, iou), boxed))[0].loss
    first, single = np.arange(4) > 0, np.arange(4) == 0
    expected = judge(RECIPE, logits, iou, mask, inside, single if i else first).loss
    np.testing.assert_allclose(loss(RECIPE), expected, rtol=1e-6)
    more = judge(RECIPE, logits, iou, mask, inside, single).loss if both else 0.0
    np.testing.assert_allclose(loss(replace(RECIPE, single_first=True)), expected + more, rtol=1e-6)


@pytest.mark.parametrize("change, said", [
    ({"valid": None}, "needs size, masks, valid"), ({"image": None}, "either image or features"),
    ({"features": np.zeros((8, 2, 3, 16), np.float32)}, "either image or features"),
    ({"image": np.zeros((8, 32, 32, 3), np.uint8)}, r"image must be uint8 \(8, 32, 48, 3\), not uint8 \(8, 32, 32, 3"),
    ({"image": np.zeros((8, 32, 48, 3), np.float32)}, "not float32"),
    ({"size": np.zeros((8, 2))}, "size must be int32"),
    ({"masks": np.zeros((8, 3, 8, 12), bool)}, r"masks must be bool \(8, 2, 8, 12\)"),
    ({"masks": np.zeros((8, 2, 12, 12), bool)}, r"multiple of \(8, 12\)"),
])
def test_wrong_batches_are_named(change, said):
    batch = {name: array for name, array in (make_batch(0) | change).items() if array is not None}
    with pytest.raises(InputError, match=said):
        check_batch(CONFIG, RECIPE, batch)


def test_parts_must_be_equal():
    with pytest.raises(InputError, match="images, 8, cannot be taken in 16"):
        in_parts(lambda part: part, 16, make_batch(0))


def test_training_config():
    full = training_config(CONFIG, replace(RECIPE, decoder_depth=3))
    assert (full.encoder.drop_path, full.decoder.dropout, full.decoder.depth) == (0.5, 0.1, 3)
    frozen = training_config(CONFIG, replace(RECIPE, train="decoder"))
    assert (frozen.encoder.drop_path, frozen.decoder.dropout, frozen.decoder.depth) == (0.0, 0.1, 1)
    assert training_config(CONFIG, replace(RECIPE, train="encoder")).decoder.dropout == 0.0
