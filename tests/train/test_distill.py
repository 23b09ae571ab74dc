"""Distillation: what it compares, what it moves, equal on one device and on many, and what comes of it."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from small_training import CONFIG, TINY, jitted, make_batch, params_of, quick_program

import convert
import samjax
from samjax import checkpoint
from samjax.config import Decoder
from samjax.data import Pictures, make_pipeline, with_features
from samjax.errors import InputError
from samjax.model.fold import fold_batch_norm
from samjax.model.sam import encode_image
from samjax.parallel import MeshStep, PmapStep
from samjax.predict import normalise
from samjax.sharding import RULES, make_mesh
from samjax.train import distill, loop
from samjax.train.devices import OneStep
from samjax.train.distill import DISTILL, Losses, begin, distilled_config, make_distill_step
from samjax.train.simulate import FOREGROUND, TOP_LEFT
from samjax.train.step import init_state

RECIPE = replace(DISTILL, batch=16, objects=2, warmup=2, lr=1e-3, clip=0.0)
ALL = Losses(1.0, 1.0, 1.0)
SMALL = replace(CONFIG, decode_chunk=2)  # of the same kind as its teacher here, so that they can be equal


def pairs(seed=0, images=16, objects=2):
    """A batch; the teacher's features are noise about as large as features are."""
    random = np.random.default_rng(seed + 100)
    features = random.standard_normal((images, *CONFIG.grid, CONFIG.channels), np.float32)
    return make_batch(seed, images, objects) | {"features": features}


@cache
def start():
    return jax.tree.map(np.asarray, init_state(SMALL, RECIPE, params_of(SMALL), jax.random.key(3)))


@cache
def program(losses=ALL):
    return jitted(make_distill_step(SMALL, SMALL, RECIPE, losses))


def take(state, batch, losses=ALL):
    return jax.device_get(program(losses)(*jax.device_put((state, batch), jax.devices()[0])))


def moved(before, after):
    before, after = (flatten_dict(state.params, sep="/") for state in (before, after))
    return {path for path in before if not np.array_equal(before[path], after[path])}


def assert_same(run, other, tolerance=1e-5):
    for name in run[1]:
        np.testing.assert_allclose(run[1][name], other[1][name], rtol=tolerance, atol=tolerance, err_msg=name)
    for (path, a), b in zip(flatten_dict(run[0].params, sep="/").items(), jax.tree.leaves(other[0].params)):
        if path.endswith("qkv/bias"):  # a key's bias cancels in the softmax: its gradient is rounding
            a, b = (np.delete(x, np.s_[16:32]) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=path)


def bare(batch):
    """The batch of pictures that have no masks."""
    return batch | {"masks": batch["masks"][:, :0], "valid": batch["valid"][:, :0]}


def features_of(params, batch):
    encode = jitted(lambda params, image, size: encode_image(SMALL, params, normalise(SMALL, image, size)))
    return np.asarray(encode(params, batch["image"], batch["size"]))


def test_the_encoder_alone_moves():
    """And learns of the masks too, through the decoder that stands still."""
    state, batch = start(), pairs()
    after, metrics = take(state, batch)
    encoder = {path for path in flatten_dict(state.params, sep="/") if path.startswith("image_encoder/")}
    assert moved(state, after) == encoder and metrics["finite"]
    assert not any("decoder" in str(path) for path, _ in jax.tree.leaves_with_path(after.opt_state))
    np.testing.assert_allclose(metrics["loss"], metrics["mse"] + metrics["bce"] + metrics["dice"], rtol=1e-5)
    assert metrics["bce"] > 0 and metrics["dice"] > 0 and 0 <= metrics["iou"] < 1
    plain, without = take(state, batch, Losses())
    assert without["mse"] == pytest.approx(metrics["mse"]) and without["cosine"] == pytest.approx(metrics["cosine"])
    for a, b in zip(jax.tree.leaves(after.opt_state[0].mu), jax.tree.leaves(plain.opt_state[0].mu)):
        assert np.abs(a - b).max() > 1e-4 * np.abs(a).max()


def test_plain_loss():
    """Without the decoder, as a plain reading of it has it; masks do not matter then."""
    state, batch = start(), pairs()
    _, metrics = take(state, batch, Losses())
    assert set(metrics) == {"loss", "mse", "cosine", "learning_rate", "grad_norm", "finite"}
    features = features_of(state.params, batch)
    np.testing.assert_allclose(metrics["loss"], np.square(features - batch["features"]).mean(), rtol=1e-5)
    a, b = (x.reshape(-1, 16) for x in (features, batch["features"]))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(metrics["cosine"], cosines.mean(), atol=1e-6)
    assert take(state, batch | {"masks": ~batch["masks"]}, Losses())[1]["loss"] == metrics["loss"]


def test_nothing_to_learn_from_oneself():
    state, batch = start(), pairs()
    _, metrics = take(state, batch | {"features": features_of(state.params, batch)})
    assert abs(metrics["loss"]) < 1e-6 and metrics["iou"] > 0.999 and metrics["cosine"] == pytest.approx(1)


@pytest.mark.parametrize("wrap", [PmapStep, lambda step: MeshStep(step, make_mesh(2), RULES)], ids=["pmap", "mesh"])
def test_eight_devices_equal_one(wrap):
    """Two pictures on each; over the mesh, pairs of devices hold the parameters together."""
    many = wrap(make_distill_step(SMALL, SMALL, RECIPE, ALL))
    state, single = many.place(start()), start()
    run = quick_program(many, state, pairs())
    for i in range(2):
        state, metrics = run(state, many.feed(pairs(i)))
        single, expected = take(single, pairs(i))
        assert_same((many.fetch(state), many.fetch(metrics)), (single, expected))


def test_padding_objects_change_nothing():
    batch = pairs()
    masks = np.where(batch["valid"][..., None, None], batch["masks"], ~batch["masks"])
    assert (masks != batch["masks"]).any()
    assert_same(take(start(), batch), take(start(), batch | {"masks": masks}), 1e-7)


@pytest.mark.parametrize("boxes", [0.0, 1.0])
def test_prompts(boxes):
    """Of the masks where there are any, else points anywhere in the picture."""
    keys, batch = jax.random.split(jax.random.key(1), 16), pairs()
    recipe = replace(RECIPE, objects=50, boxes=boxes)
    draw = jitted(lambda batch: distill._prompts(
        CONFIG, recipe if batch["valid"].shape[1] else replace(recipe, boxes=0.0),
        distill._with_regions(CONFIG, recipe, batch), keys))
    points, labels = jax.device_get(draw(batch))
    valid = batch["valid"]
    assert set(labels[valid][:, 0]) == {TOP_LEFT if boxes else FOREGROUND}
    if boxes:
        return
    cells = (points[:, :, 0] // 4).astype(int)
    where = (cells[..., 1] * 12 + cells[..., 0])[..., None]
    assert np.take_along_axis(batch["masks"].reshape(16, 2, -1), where, 2)[valid].all()
    points, labels = jax.device_get(draw(bare(batch)))
    assert (labels == [FOREGROUND, -1]).all() and points.shape == (16, 50, 2, 2)
    first = points[:, :, 0]
    assert (first >= 0).all() and (first < batch["size"][:, None, ::-1]).all()
    spread = first[:, :, 0].ravel()
    assert spread.min() < 6 and spread.max() > 42 and abs(spread.mean() - 23.5) < 3


def test_agreement():
    random = np.random.default_rng(0)
    a, b = random.normal(0, 3, (2, 8, 12)).astype(np.float32)
    inside = np.zeros((8, 12), bool)
    inside[:5, :9] = True
    found = distill.agreement(jnp.array(a), jnp.array(b), jnp.array(inside))
    p, t = (1 / (1 + np.exp(-x[inside].astype(np.float64))) for x in (a, b))
    divergence = t * np.log(t / p) + (1 - t) * np.log((1 - t) / (1 - p))
    np.testing.assert_allclose(found["bce"], divergence.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["dice"], 1 - (2 * (p * t).sum() + 1) / ((p * p + t * t).sum() + 1), rtol=1e-5)
    np.testing.assert_allclose(found["iou"], ((p > 0.5) & (t > 0.5)).sum() / ((p > 0.5) | (t > 0.5)).sum(), rtol=1e-6)
    same = distill.agreement(jnp.array(a), jnp.array(a), jnp.array(inside))
    assert same["bce"] == 0 and abs(same["dice"]) < 1e-6 and same["iou"] == 1


def test_begin(monkeypatch):
    """A TinyViT beside a ViT: the encoder is new but for the end of its neck, all else the teacher's."""
    monkeypatch.setattr(distill, "init", lambda config, key: params_of(config))
    teacher = jax.tree.map(lambda x: x + 1, params_of(CONFIG))
    params = begin(TINY, CONFIG, teacher, jax.random.key(0))
    for name in ("prompt_encoder", "mask_decoder"):
        assert all(a is b for a, b in zip(jax.tree.leaves(params[name]), jax.tree.leaves(teacher[name])))
    neck, theirs = params["image_encoder"]["neck"], teacher["image_encoder"]["neck"]
    assert all(neck[name] is theirs[name] for name in ("norm1", "conv2", "norm2"))
    assert neck["conv1"]["kernel"].shape == (8, 16) and theirs["conv1"]["kernel"].shape == (16, 16)
    assert jax.tree.structure(params) == jax.tree.structure(params_of(TINY))


def test_what_cannot_be():
    with pytest.raises(InputError, match="features are 4 x 6, the teacher's 2 x 3"):
        distilled_config(replace(TINY, image_size=(64, 96)), CONFIG)
    with pytest.raises(InputError, match="must be 'encoder', not 'everything'"):
        make_distill_step(TINY, CONFIG, replace(RECIPE, train="everything"))
    for left_out, said in (("features", "the teacher's features; this one has image"), ("image", "needs image"),
                           ("size", "needs size")):
        batch = {name: array for name, array in pairs().items() if name != left_out}
        with pytest.raises(InputError, match=said):
            distill.check_pairs(CONFIG, RECIPE, batch)
    with pytest.raises(InputError, match="features must be float32"):
        distill.check_pairs(CONFIG, RECIPE, pairs() | {"features": np.zeros((8, 4, 6, 16), np.float32)})


class Noise:
    """Features of any picture that is 32 x 48."""

    def __getitem__(self, name):
        return np.random.default_rng(len(name)).standard_normal((2, 3, 16), np.float32), (32, 48)


class QuickStep(OneStep):
    def __init__(self, step, *sharding):
        self._run = jitted(step, donate_argnums=0)


def test_from_pictures_by_the_loop(tmp_path, monkeypatch):
    """Pictures without masks and their cached features, in two parts each; an end, and what follows it."""
    monkeypatch.setattr(loop, "spread", QuickStep)
    for k in range(5):
        pixels = np.random.default_rng(k).integers(0, 256, (32, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    source, calls = with_features(Pictures(tmp_path), Noise()), []
    recipe = replace(RECIPE, batch=2, steps=3, accumulate=2)
    step, params = make_distill_step(SMALL, SMALL, recipe), params_of(SMALL)

    def run():
        batches = make_pipeline([source], SMALL, batch=2, objects=0, images=True)
        return loop.train(SMALL, recipe, params, batches, tmp_path / "out", loop.Plan(save_every=2),
                          step=lambda *args, **options: calls.append(1) or step(*args, **options))

    outcome = run()
    kernels = [tree["image_encoder"]["neck"]["conv1"]["kernel"] for tree in (outcome.params, params)]
    assert outcome.step == 3 and calls and not np.array_equal(*kernels)
    assert run().resumed == 3


def test_the_student_as_a_file(tmp_path):
    """A directory that `load` reads, and a .pth, which holds the same numbers but not the size of the pictures."""
    config = replace(TINY, decoder=Decoder(depth=1, mlp=16))
    params = params_of(config)
    checkpoint.save_model(tmp_path / "model", config, params, {})
    assert samjax.load(tmp_path).config == fold_batch_norm(config, params)[0]
    convert.write(tmp_path / "student.pth", convert.read(tmp_path / "model"))
    again = convert.read(tmp_path / "student.pth")
    assert again.config.encoder.widths == config.encoder.widths
    assert config.image_size == (32, 48) and again.config.image_size == (1024, 1024)
    for (path, a), (other, b) in zip(sorted(convert.flatten(params).items()),
                                     sorted(convert.flatten(again.params()).items()), strict=True):
        assert path == other and np.array_equal(a, b)
