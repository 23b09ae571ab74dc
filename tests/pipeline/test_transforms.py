"""From a record to an example of a batch."""

import numpy as np
import pytest
from made import compressed, picture, shapes
from PIL import Image

from samjax import rle
from samjax.config import VIT_B
from samjax.data import records
from samjax.data.frame import plain
from samjax.data.grid import to_cells
from samjax.data.records import Part, Record, Rle
from samjax.data.transforms import Augment, blank, draw_frame, draw_masks, example, mask_cells
from samjax.errors import InputError
from samjax.geometry import prepare, target_size

HW = (48, 80)


def record(masks, rng=0):
    image = picture(np.random.default_rng(rng), masks[0].shape)
    return Record("a", lambda longest=None: image, [Part(mask.shape, mask) for mask in masks])


def full(part, first, cells):
    out = np.zeros(cells, bool)
    out[first[0]:first[0] + part.shape[0], first[1]:first[1] + part.shape[1]] = part
    return out


def test_contract(config):
    masks = shapes(np.random.default_rng(0), HW, 3)
    made = example(record(masks), config, (16, 16), 5, np.random.default_rng(0))
    assert {key: (value.dtype, value.shape) for key, value in made.items()} == {
        "image": (np.uint8, (64, 64, 3)), "size": (np.int32, (2,)), "masks": (bool, (5, 16, 16)), "valid": (bool, (5,))}
    want, new_hw = prepare(record(masks).image, config)
    assert np.array_equal(made["image"], want) and tuple(made["size"]) == new_hw
    assert made["valid"].tolist() == [True] * 3 + [False] * 2
    for mask, got in zip(masks, made["masks"]):
        (found,) = to_cells([rle.encode(mask)], plain(HW, (64, 64)), (16, 16))
        assert np.array_equal(got, full(*found, (16, 16)))
    assert not made["masks"][3:].any()
    empty = blank(config, (16, 16), 5, features=False)
    assert {key: (v.dtype, v.shape) for key, v in empty.items()} == {key: (v.dtype, v.shape) for key, v in made.items()}
    assert not empty["valid"].any()


def test_large_and_small_masks_are_dropped(config):
    h, w = HW
    most = np.zeros(HW, bool)
    most.reshape(-1)[:int(0.9 * h * w) + 1] = True
    just = np.zeros(HW, bool)
    just.reshape(-1)[:int(0.9 * h * w)] = True
    specks = [np.zeros(HW, bool) for _ in range(2)]
    specks[0].reshape(-1)[:31], specks[1].reshape(-1)[:32] = True, True
    made = example(record([most, just, *specks]), config, (16, 16), 4, np.random.default_rng(0))
    assert made["valid"].sum() == 2
    with pytest.raises(InputError, match="none of its 2 masks"):
        example(record([most, specks[0]]), config, (16, 16), 4, np.random.default_rng(0))
    with pytest.raises(InputError, match="no masks"):
        example(Record("a", None, []), config, (16, 16), 4, np.random.default_rng(0))


def test_masks_are_drawn_evenly_and_only_those_are_decoded(monkeypatch):
    boxes = []
    for k in range(10):
        mask = np.zeros(HW, bool)
        mask[:, 8 * k:8 * k + 8] = True
        boxes.append(mask)
    texts = [compressed(mask)["counts"] for mask in boxes]
    decoded = []
    monkeypatch.setattr(records.rle, "decompress_all", lambda texts, real=rle.decompress_all: (
        decoded.append(len(texts)), real(texts))[1])
    counts = np.zeros(10, int)
    for seed in range(300):
        many = Record("a", None, [Rle(HW, text) for text in texts])
        masks, valid = draw_masks(many, plain(HW, (64, 64)), (16, 16), 3, np.random.default_rng(seed))
        assert valid.all()
        for mask in masks:
            counts[int(np.nonzero(mask)[1].mean() * 10 / 16)] += 1
    assert decoded == [3] * 300
    assert ((counts - 90) ** 2 / 90).sum() < 27.9  # chi-square, 9 degrees of freedom: 0.1 %


def test_dropped_masks_are_replaced(config):
    """Of ten masks the first six drawn may be useless: the rest is drawn until there are enough."""
    good = shapes(np.random.default_rng(1), HW, 4)
    masks = [np.zeros(HW, bool)] * 6 + good
    for seed in range(20):
        made = example(record(masks), config, (16, 16), 4, np.random.default_rng(seed))
        assert made["valid"].all()


def test_no_augmentation_is_plain():
    assert draw_frame(HW, (64, 64), None, np.random.default_rng(0)).plain
    assert draw_frame(HW, (64, 64), Augment(flip=0), np.random.default_rng(0)).plain


def test_flips_come_as_often_as_asked():
    rng = np.random.default_rng(0)
    flips = sum(draw_frame(HW, (64, 64), Augment(flip=0.3), rng).flip for _ in range(2000))
    assert abs(flips - 600) < 80


def test_upside_down_comes_as_often_as_asked():
    rng = np.random.default_rng(0)
    found = sum(draw_frame(HW, (64, 64), Augment(flip=0, upside=0.3), rng).upside for _ in range(2000))
    assert abs(found - 600) < 80
    for wrong in ({"upside": 1.5}, {"light": 1.0}):
        with pytest.raises(ValueError):
            Augment(**wrong)


def test_light_changes_the_picture_alone(config):
    """Every pixel by one and the same table, within its bounds; neither masks nor the padding."""
    found = record(shapes(np.random.default_rng(0), HW, 3))
    plain_one = example(found, config, (16, 16), 4, np.random.default_rng(0))
    h, w = plain_one["size"]
    means = []
    for seed in range(30):
        made = example(found, config, (16, 16), 4, np.random.default_rng(seed), Augment(flip=0, light=0.3))
        assert np.array_equal(made["masks"], plain_one["masks"]) and not made["image"][h:].any()
        old, new = plain_one["image"][:h, :w].ravel(), made["image"][:h, :w].ravel().astype(int)
        order = np.argsort(old, kind="stable")
        assert (np.diff(new[order]) >= 0).all()  # a darker pixel never becomes the brighter one
        bounds = [np.clip(((old - 127.5) * c + 127.5) * b, 0, 255) for c in (0.7, 1.3) for b in (0.7, 1.3)]
        assert (new >= np.min(bounds, 0) - 1).all() and (new <= np.max(bounds, 0) + 1).all()
        means.append(new.mean())
    assert np.std(means) > 5


def test_jitter_draws_scales_evenly_and_places_anywhere():
    rng, scales, places = np.random.default_rng(0), [], []
    base = target_size(*HW, (1024, 1024))
    for _ in range(2000):
        frame = draw_frame(HW, (1024, 1024), Augment(0, (0.1, 2.0)), rng)
        scales.append(frame.scaled_hw[1] / base[1])
        assert all(0 <= o <= max(n - s, 0) for o, n, s in zip(frame.offset, frame.scaled_hw, frame.size))
        assert all(0 < v <= s for v, s in zip(frame.valid, frame.size))
        if frame.scaled_hw[1] > 1500:
            places.append(frame.offset[1] / (frame.scaled_hw[1] - 1024))
    counts = np.histogram(scales, 10, (0.1, 2.0))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9
    assert 0.45 < np.mean(places) < 0.55 and min(places) < 0.02 and max(places) > 0.98


def test_examples_depend_on_the_generator_alone(config):
    found = record(shapes(np.random.default_rng(0), HW, 9))
    for augment in (None, Augment(0.5, (0.1, 2.0))):
        first, again, other = (example(found, config, (16, 16), 4, np.random.default_rng(seed), augment)
                               for seed in (1, 1, 2))
        assert all(np.array_equal(first[key], again[key]) for key in first)
        assert not all(np.array_equal(first[key], other[key]) for key in first)


def test_jittered_examples_always_have_an_object(config):
    corner = np.zeros(HW, bool)
    corner[:7, :7] = True
    for seed in range(60):
        made = example(record([corner]), config, (16, 16), 2, np.random.default_rng(seed), Augment(0.5, (0.1, 2.0)))
        assert made["valid"][0] and made["masks"][0].any() and not made["valid"][1]


def test_mask_size():
    assert mask_cells(VIT_B, None) == mask_cells(VIT_B, 256) == (256, 256)
    assert mask_cells(VIT_B, 1024) == (1024, 1024)
    for wrong in (128, 300, 0):
        with pytest.raises(InputError, match="multiple of 256"):
            mask_cells(VIT_B, wrong)


def test_mask_of_another_size_than_its_picture(config):
    found = record(shapes(np.random.default_rng(0), HW, 2))
    found.open = lambda longest=None: Image.new("RGB", (80, 49))
    with pytest.raises(InputError, match="80 x 48 pixels.*80 x 49"):
        example(found, config, (16, 16), 2, np.random.default_rng(0))


def test_features_take_the_picture_s_place(config):
    found = record(shapes(np.random.default_rng(0), HW, 2))
    features = np.random.default_rng(0).standard_normal((4, 4, 32)).astype(np.float16)
    found.open = None  # never opened
    found.features = lambda: (features, (38, 64))
    made = example(found, config, (16, 16), 2, np.random.default_rng(0))
    assert set(made) == {"features", "size", "masks", "valid"} and made["features"].dtype == np.float32
    assert np.array_equal(made["features"], features) and tuple(made["size"]) == (38, 64)
    found.features = lambda: (features, (64, 64))
    with pytest.raises(InputError, match="make the embeddings again"):
        example(found, config, (16, 16), 2, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"scale": (0, 1)}, {"scale": (2, 1)}])
def test_augment_checks_its_numbers(wrong):
    with pytest.raises(ValueError):
        Augment(**wrong)
