"""The predictor: equal to the official code on real photographs, whatever else is asked in the same call."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, random_params
from golden_files import Golden, mask_iou, relative_error

import samjax
from samjax import predict
from samjax.config import SamConfig
from samjax.errors import InputError
from samjax.predict import Embedding, Sam

EXAMPLE = Path(__file__).parents[1] / "examples" / "coffee.jpg"
COFFEE = Golden(DATA / "mobilesam_coffee.npz")
EMBEDDING, IOU, MASK = 2e-4, 1e-3, 0.999  # bars: relative, absolute, least


def assert_equal_to_official(golden, sam, image):
    embedding = sam.encode(image)
    assert golden.embedding_error(embedding.features) <= EMBEDDING
    found = golden.segment(sam, embedding)
    errors = {name: golden.errors(name, found[name]) for name in found}
    assert len(errors) == len(golden.prompts)
    bad = {name: e for name, e in errors.items() if e["iou"] > IOU or e["mask_iou"] < MASK or e["logits"] > 1e-3}
    assert not bad, bad


# -- equal to the official code ------------------------------------------------------------------------------


@pytest.mark.weights
def test_bundled_photograph_equals_official(mobile_sam):
    assert_equal_to_official(COFFEE, mobile_sam, EXAMPLE)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["truck", "dog", "groceries"])
def test_mobile_sam_equals_official(mobile_sam, reference, name):
    golden = Golden(reference / "golden" / f"mobilesam_{name}.npz")
    assert_equal_to_official(golden, mobile_sam, reference / "images" / f"{name}.jpg")


@pytest.mark.weights
def test_lite_medsam_equals_official(lite_medsam, reference):
    golden = Golden(reference / "golden" / "litemedsam_dog.npz")
    assert_equal_to_official(golden, lite_medsam, reference / "images" / "dog.jpg")


@pytest.mark.weights
def test_bfloat16_keeps_the_masks(mobile_sam_path, mobile_sam):
    """Masks of the goldens' prompts in bfloat16 against float32."""
    half = samjax.load(mobile_sam_path, dtype="bfloat16")
    exact, rough = (COFFEE.segment(sam, sam.encode(EXAMPLE)) for sam in (mobile_sam, half))
    assert min(mask_iou(exact[name].masks, rough[name].masks).min() for name in exact) >= 0.98


# -- a small model with random weights, for everything that does not depend on what it has learned --------------


@pytest.fixture(scope="module")
def small(small_vit):
    config, params = small_vit
    return Sam(config, jax.device_put(params))


@pytest.fixture(scope="module")
def decode(small):
    return jax.jit(partial(samjax.decode_masks, small.config))


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(50, 70), (120, 60), (64, 96)]]


@pytest.fixture(scope="module")
def encoded(small, pictures):
    return small.encode(pictures)


def same(a, b, tolerance=1e-6):
    """Two answers for the same objects."""
    assert a.masks.shape == b.masks.shape
    assert relative_error(a.logits, b.logits) <= tolerance
    assert relative_error(a.iou, b.iou) <= tolerance
    return True


POINTS = [[[10.0, 12], [40, 30]], [[5, 45], [60, 8]], [[33, 20], [1, 2]]]
LABELS = [[1, 0], [1, 1], [0, 1]]
BOXES = [[3.0, 4, 30, 40], [20, 10, 69, 50], [0, 0, 70, 50]]


def logits_of(small, seed, n=3):
    return np.random.default_rng(seed).normal(0, 5, (n, *small.config.mask_size)).astype(np.float32)


def mixes(small):
    return [dict(points=POINTS, labels=LABELS), dict(boxes=BOXES), dict(points=POINTS, labels=LABELS, boxes=BOXES),
            dict(points=POINTS, labels=LABELS, mask_logits=logits_of(small, 1)),
            dict(boxes=BOXES, mask_logits=logits_of(small, 2)), dict(mask_logits=logits_of(small, 3))]


def test_many_objects_equal_each_alone(small, encoded):
    for mix in mixes(small):
        together = small.segment(encoded[0], **mix)
        for i in range(3):
            alone = small.segment(encoded[0], **{name: np.asarray(value)[i] for name, value in mix.items()})
            assert np.array_equal(together.logits[i], alone.logits[0])
            assert np.array_equal(together.iou[i], alone.iou[0])
            assert np.array_equal(together.masks[i], alone.masks[0])


@pytest.mark.parametrize("n", [9, 65, 130])
def test_more_objects_than_one_call_holds(small, encoded, n):
    random = np.random.default_rng(n)
    points = random.uniform(0, 50, (n, 2, 2))
    labels = random.integers(0, 2, (n, 2))
    together = small.segment(encoded[0], points, labels, multimask=False)
    assert together.masks.shape == (n, 1, 50, 70)
    for i in (0, 7, 8, n // 2, n - 1):
        same(small.segment(encoded[0], points[i], labels[i], multimask=False),
             predict.Segmentation(together.masks[i:i + 1], together.iou[i:i + 1], together.logits[i:i + 1]))


def test_order_of_objects_does_not_matter(small, encoded):
    order = [2, 0, 1]
    for mix in mixes(small):
        straight = small.segment(encoded[0], **mix)
        turned = small.segment(encoded[0], **{name: np.asarray(value)[order] for name, value in mix.items()})
        assert np.array_equal(turned.logits, straight.logits[order])
        assert np.array_equal(turned.masks, straight.masks[order])


def test_order_of_points_does_not_matter(small, encoded):
    points, labels = np.array(POINTS), np.array(LABELS)
    for more in (dict(), dict(boxes=BOXES)):
        same(small.segment(encoded[0], points, labels, **more),
             small.segment(encoded[0], points[:, ::-1], labels[:, ::-1], **more), 1e-5)


@pytest.mark.parametrize("empty", [1, 5, 6, 20])
def test_empty_points_change_nothing(small, encoded, empty):
    """Objects with fewer points are filled up with label -2, whose coordinates do not count."""
    points = np.pad(np.array(POINTS), ((0, 0), (0, empty), (0, 0)), constant_values=1e6)
    labels = np.pad(np.array(LABELS), ((0, 0), (0, empty)), constant_values=-2)
    same(small.segment(encoded[0], points, labels), small.segment(encoded[0], POINTS, LABELS))
    points, labels = np.roll(points, empty, 1), np.roll(labels, empty, 1)  # in front
    same(small.segment(encoded[0], points, labels), small.segment(encoded[0], POINTS, LABELS), 1e-5)


def prompts_of(small, image_hw, **given):
    from samjax.prompts import make_slots

    return samjax.Prompts(*(jnp.asarray(x)[None] for x in make_slots(small.config, image_hw, **given)))


def with_empty_slots(prompts, count):
    pad = lambda x, value: jnp.pad(x, ((0, 0), (0, 0), (0, count)) + ((0, 0),) * (x.ndim - 3), constant_values=value)
    return prompts._replace(points=pad(prompts.points, 77.0), labels=pad(prompts.labels, -2))


@pytest.mark.parametrize("count", [1, 6, 61])
def test_empty_slots_change_nothing(small, encoded, decode, count):
    prompts = prompts_of(small, (50, 70), points=POINTS, labels=LABELS)  # three slots each
    plain = decode(small.params, encoded[0].features, prompts)
    padded = decode(small.params, encoded[0].features, with_empty_slots(prompts, count))
    assert relative_error(padded.logits, plain.logits) <= 1e-6
    assert relative_error(padded.iou, plain.iou) <= 1e-6


@pytest.mark.slow
def test_empty_slots_have_no_gradient(small, encoded):
    """Not of the points, and no NaN anywhere (a masked score is minus infinity)."""
    prompts = with_empty_slots(prompts_of(small, (50, 70), points=POINTS, labels=LABELS), 4)

    def loss(params, points):
        masks = samjax.decode_masks(small.config, params, encoded[0].features, prompts._replace(points=points))
        return jnp.sin(masks.logits).sum() + jnp.sin(masks.iou).sum()

    of_params, of_points = jax.jit(jax.grad(loss, (0, 1)))(small.params, prompts.points)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(of_params))
    assert bool(jnp.isfinite(of_points).all())
    assert not of_points[:, :, -4:].any() and of_points[:, :, :2].all()


def test_all_slots_empty_is_finite(small, encoded, decode):
    """A prompt without any token (official: a mask alone) still attends to the output tokens."""
    shape = (1, 2, 8)
    masks = decode(small.params, encoded[0].features, samjax.Prompts(jnp.zeros((*shape, 2)), jnp.full(shape, -2)))
    assert bool(jnp.isfinite(masks.logits).all()) and bool(jnp.isfinite(masks.iou).all())
    none = decode(small.params, encoded[0].features,
                  samjax.Prompts(jnp.zeros((1, 2, 0, 2)), jnp.zeros((1, 2, 0), jnp.int32)))
    assert relative_error(masks.logits, none.logits) <= 1e-6


def test_a_mask_that_does_not_count_changes_nothing(small, encoded, decode):
    prompts = prompts_of(small, (50, 70), points=POINTS, labels=LABELS)
    plain = decode(small.params, encoded[0].features, samjax.Prompts(prompts.points, prompts.labels))
    for flags in ([False] * 3, [False, True, False]):
        mixed = decode(small.params, encoded[0].features, prompts._replace(
            mask_logits=jnp.asarray(logits_of(small, 5))[None], has_mask=jnp.array([flags])))
        assert relative_error(mixed.logits[:, 0], plain.logits[:, 0]) <= 1e-6
        assert relative_error(mixed.logits[:, 2], plain.logits[:, 2]) <= 1e-6
    assert relative_error(mixed.logits[:, 1], plain.logits[:, 1]) > 1e-3


def test_batch_of_pictures_equals_each_alone(small, pictures, encoded):
    assert encoded.image_sizes.tolist() == [[50, 70], [120, 60], [64, 96]]
    prompts = [dict(points=[[10, 20]], labels=[1]), dict(boxes=[[1, 2, 30, 40], [5, 5, 50, 100]]),
               dict(points=[[3, 4], [50, 60]], labels=[1, 0], boxes=[0, 0, 96, 64])]
    together = small.segment_batch(encoded, prompts)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts)):
        alone = small.encode(picture)
        assert relative_error(encoded[i].features, alone.features) <= 1e-6
        same(together[i], small.segment(alone, **prompt))
        assert together[i].masks.shape[-2:] == picture.shape[:2]


def test_features_do_not_depend_on_how_many_pictures_there_are(small, pictures, monkeypatch):
    """An accelerator encodes lists of any length in batches of one size."""
    made, encode = [], Sam._encode_spread
    monkeypatch.setattr(predict, "_batch_size", lambda: 2)
    monkeypatch.setattr(Sam, "_encode_spread", lambda self, batch: made.append(len(batch[0])) or encode(self, batch))
    found = [np.asarray(small.encode(pictures[:n]).features) for n in (1, 3)]
    assert (found[0] == found[1][:1]).all() and made == [2 * jax.local_device_count()] * 2


def test_chunks_change_nothing(small, encoded):
    random = np.random.default_rng(0)
    prompts = prompts_of(small, (50, 70), points=random.uniform(0, 50, (12, 3, 2)), labels=np.ones((12, 3)))
    one, *others = (jax.jit(partial(samjax.decode_masks, replace(small.config, decode_chunk=size)))(
        small.params, encoded[0].features, prompts) for size in (1, 5, 12))  # 5 is cut to 4, a divisor
    for other in others:
        assert relative_error(other.logits, one.logits) <= 1e-6
        assert relative_error(other.iou, one.iou) <= 1e-6


def test_single_mask_is_token_0_and_alternatives_1_to_3(small, encoded, decode):
    four = decode(small.params, encoded[0].features, prompts_of(small, (50, 70), boxes=BOXES))
    for multimask, chosen in ((True, slice(1, 4)), (False, slice(0, 1))):
        found = small.segment(encoded[0], boxes=BOXES, multimask=multimask)
        assert relative_error(found.logits, four.logits[0, :, chosen]) <= 1e-6
        assert relative_error(found.iou, four.iou[0, :, chosen]) <= 1e-6


# -- no program is compiled twice ----------------------------------------------------------------------------


def programs() -> tuple[int, int]:
    return predict._encode._cache_size(), predict._decode_some._cache_size()


def test_another_picture_and_other_prompts_compile_nothing(small, pictures):
    jax.clear_caches()
    start = programs()
    small.segment(small.encode(pictures[0]), points=[[10, 12]], labels=[1])
    once = programs()
    assert [b - a for a, b in zip(start, once)] == [1, 1]
    embedding = small.encode(pictures[1])
    assert embedding.image_sizes.tolist() != [[50, 70]]
    random = np.random.default_rng(0)
    for count in range(1, 8):
        small.segment(embedding, points=random.uniform(0, 60, (count, 2)), labels=random.integers(0, 2, count))
    for mix in mixes(small):
        small.segment(embedding, **mix | ({"boxes": np.array(BOXES)} if "boxes" in mix else {}), multimask=False)
    for n in (2, 5, 8):
        small.segment(embedding, boxes=np.tile(BOXES[0], (n, 1)), points=np.ones((n, 6, 2)), labels=np.ones((n, 6)))
    assert programs() == once


def test_the_whole_call_compiles_nothing_the_second_time(small, pictures):
    """Nothing at all: neither the model nor any small operation around it."""
    import logging

    def ask(picture, **prompts):
        return small.segment(small.encode(picture), **prompts)

    ask(pictures[0], points=[[10, 12]], labels=[1])
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            ask(pictures[1], boxes=BOXES)
            ask(pictures[2], points=POINTS, labels=LABELS, mask_logits=logits_of(small, 0))
            assert not [message for message in seen if "ompil" in message], seen
            jax.jit(lambda x: x * 3.5 - 1.25)(np.float32(1))
            assert [message for message in seen if "ompil" in message], "the log shows compilations"
    finally:
        logger.removeHandler(handler)


def test_ten_clicks_compile_two_programs(small, encoded):
    jax.clear_caches()
    start = programs()
    random = np.random.default_rng(1)
    for count in range(1, 11):
        small.segment(encoded[0], random.uniform(0, 50, (count, 2)), np.ones(count), multimask=False)
    assert programs()[1] - start[1] <= 2


# -- inside other people's programs ----------------------------------------------------------------------------


def test_sam_is_a_pytree(small):
    leaves, structure = jax.tree.flatten(small)
    assert len(leaves) == len(jax.tree.leaves(small.params))
    again = jax.tree.unflatten(structure, leaves)
    assert again.config == small.config and isinstance(again, Sam)
    doubled = jax.tree.map(lambda x: 2 * x, small)
    assert doubled.config is small.config


@pytest.mark.slow
def test_inside_jit_grad_and_vmap(small, pictures):
    config = small.config
    pixels = np.random.default_rng(0).normal(size=(2, *config.image_size, 3)).astype(np.float32)
    prompts = prompts_of(small, (64, 96), points=[[10, 12]], labels=[1])

    @jax.jit
    def whole(sam, pixels):
        features = samjax.encode_image(sam.config, sam.params, pixels)
        return samjax.decode_masks(sam.config, sam.params, features, prompts).logits

    one = whole(small, pixels[:1])
    assert one.shape == (1, 1, 4, *config.mask_size)
    mapped = jax.vmap(lambda x: whole(small, x[None])[0])(pixels)
    assert relative_error(mapped[:1], one) <= 1e-5
    gradient = jax.grad(lambda sam: jnp.square(whole(sam, pixels[:1])).mean())(small)
    assert isinstance(gradient, Sam)
    sizes = jax.tree.map(lambda x: float(jnp.abs(x).max()), gradient.params)
    assert all(np.isfinite(list(jax.tree.leaves(sizes))))
    assert sizes["image_encoder"]["blocks_0"]["attn"]["rel_pos_h"] > 0
    assert sizes["prompt_encoder"]["gaussian"] == 0  # a buffer


@pytest.mark.parametrize("model", ["small_vit", "small_tiny"])
def test_sharded_over_pictures(request, model):
    """A batch on eight devices gives what one device gives, and no device ever asks another for activations."""
    config, params = request.getfixturevalue(model)
    pixels = np.random.default_rng(0).normal(size=(8, *config.image_size, 3)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    encode = partial(samjax.encode_image, config)
    expected = jax.jit(encode)(params, pixels)
    sharded = jax.jit(encode, in_shardings=(sharding(), sharding("data")))
    found = sharded(params, pixels)
    assert len(found.sharding.device_set) == 8 and found.sharding.shard_shape(found.shape)[0] == 1
    assert relative_error(found, expected) <= 1e-5
    text = sharded.lower(params, pixels).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text


def test_decoding_sharded_over_pictures(small_vit):
    config, params = small_vit
    random = np.random.default_rng(0)
    features = random.normal(size=(8, *config.grid, config.channels)).astype(np.float32)
    prompts = samjax.Prompts(random.uniform(0, 64, (8, 2, 3, 2)).astype(np.float32),
                             random.integers(0, 2, (8, 2, 3), np.int32))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    decode = partial(samjax.decode_masks, config)
    sharded = jax.jit(decode, in_shardings=(sharding(), sharding("data"), sharding("data")))
    assert relative_error(sharded(params, features, prompts).logits,
                          jax.jit(decode)(params, features, prompts).logits) <= 1e-5
    assert "all-gather" not in sharded.lower(params, features, prompts).compile().as_text()


# -- errors ------------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize("given, message", [
    (dict(), "no prompt"),
    (dict(labels=[1]), "labels are given without points"),
    (dict(points=[[1, 2]]), "points need labels"),
    (dict(points=[1, 2], labels=[1]), "points must have shape"),
    (dict(points=[[1, 2, 3]], labels=[1]), "points must have shape"),
    (dict(points=np.zeros((0, 2)), labels=[]), "points must have shape"),
    (dict(points=[[1, 2], [3]], labels=[1, 1]), "rectangular"),
    (dict(points="here", labels=[1]), "points must be"),
    (dict(points=[[1, 2]], labels=[1, 1]), "one label for each point"),
    (dict(points=[[1, 2]], labels=[7]), "label 7 is none of"),
    (dict(points=[[1, 2]], labels=[0.5]), "label 0.5 is none of"),
    (dict(points=[[1, 2]], labels=[-1]), "label -1 is none of"),
    (dict(points=[[1, 2]], labels=[NAN]), "labels hold NaN"),
    (dict(points=[[NAN, 2]], labels=[1]), "points hold NaN"),
    (dict(points=[[71, 2]], labels=[1]), r"point \(71, 2\) lies outside the image of 70 x 50"),
    (dict(points=[[-1, 2]], labels=[1]), "lies outside"),
    (dict(points=[[5, 50.5]], labels=[0]), "lies outside"),
    (dict(boxes=[1, 2, 3]), "boxes must have shape"),
    (dict(boxes=np.zeros((0, 4))), "boxes must have shape"),
    (dict(boxes=[5, 5, 5, 9]), "is empty"),
    (dict(boxes=[5, 9, 7, 5]), "is empty"),
    (dict(boxes=[5, 5, float("inf"), 9]), "boxes hold NaN or infinity"),
    (dict(boxes=[80, 5, 90, 9]), "lies outside"),
    (dict(mask_logits=np.zeros((16, 24), bool)), "mask_to_logits"),
    (dict(mask_logits=np.zeros((256, 256))), r"mask_logits must have shape \(16, 24\)"),
    (dict(mask_logits=np.full((16, 24), NAN)), "mask_logits hold NaN"),
    (dict(points=[[1, 2]], labels=[1], boxes=BOXES), "disagree on the number of objects: points 1, boxes 3"),
])
def test_bad_prompts_are_named(small, encoded, given, message):
    with pytest.raises(InputError, match=message) as caught:
        small.segment(encoded[0], **given)
    assert "\n" not in str(caught.value)


def test_what_was_read_from_disk_is_segmented(small, encoded):
    from samjax.embeddings import Embedded

    prompt = dict(points=[[9, 9]], labels=[1])
    stored = Embedded(np.asarray(encoded.features[0]), np.int32([0, 0]), encoded.image_sizes[0], "a.png")
    for one, other in zip(vars(small.segment(stored, **prompt)).values(),
                          vars(small.segment(encoded[0], **prompt)).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_points_on_the_border_are_inside(small, encoded):
    small.segment(encoded[0], points=[[0, 0], [70, 50]], labels=[1, 1])
    small.segment(encoded[0], boxes=[-5, -5, 200, 200])  # a box may stick out


def test_bad_embeddings_and_pictures_are_named(small, encoded, small_tiny):
    with pytest.raises(InputError, match="3 pictures but prompts for 1"):
        small.segment(encoded, boxes=BOXES)
    other = Embedding(jnp.zeros((1, 64, 64, 256)), np.array([[5, 5]]))
    with pytest.raises(InputError, match="made by another model"):
        small.segment(other, boxes=[0, 0, 3, 3])
    with pytest.raises(InputError, match="the list is empty"):
        small.encode([])
    with pytest.raises(InputError):
        small.encode("no/such/file.jpg")


def test_bad_pixels_are_refused(small):
    with pytest.raises(ValueError, match="do not match"):
        samjax.encode_image(small.config, small.params, jnp.zeros((1, 96, 64, 3)))


@pytest.mark.weights
def test_load_changes_size_and_channels(mobile_sam_path):
    sam = samjax.load(mobile_sam_path, image_size=(256, 384), in_channels=1)
    assert isinstance(sam.config, SamConfig) and sam.config.grid == (16, 24)
    embedding = sam.encode(EXAMPLE)
    found = sam.segment(embedding, boxes=[75, 70, 482, 388], multimask=False)
    assert found.masks.shape[:2] == (1, 1) and found.logits.shape[-2:] == (64, 96)
    assert found.masks.mean() > 0.1
    for wrong in (dict(image_size=100), dict(in_channels=0), dict(dtype="float16")):
        with pytest.raises(InputError):
            samjax.load(mobile_sam_path, **wrong)


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        samjax.load("mobile_samm")
    (tmp_path / "x.pth").write_bytes(b"<html>")
    with pytest.raises(InputError, match="x.pth"):
        samjax.load(tmp_path / "x.pth")


def test_train_keeps_batch_norm(tmp_path, small_tiny):
    import convert
    from convert.model import Model
    from convert.tensor import Tensor

    config, params = small_tiny
    params = random_params(config, 3)
    model = Model(config, {path: Tensor.of(x) for path, x in convert.flatten(params).items()})
    convert.write(tmp_path / "m", model)
    kept, folded = samjax.load(tmp_path / "m", train=True), samjax.load(tmp_path / "m")
    assert not kept.config.encoder.fold_batch_norm and folded.config.encoder.fold_batch_norm
    pixels = np.random.default_rng(0).normal(size=(1, *config.image_size, 3)).astype(np.float32)
    features = [samjax.encode_image(sam.config, sam.params, pixels) for sam in (kept, folded)]
    assert relative_error(*features) <= 1e-5
