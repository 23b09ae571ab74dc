"""The forms of a mask, decoded alone and together."""

import numpy as np
import pytest
from made import compressed, shapes
from pycocotools import mask as coco_mask

from samjax import rle
from samjax.data.records import Part, Polygons, Record, Rle, decode_all
from samjax.errors import InputError


@pytest.fixture
def found():
    return shapes(np.random.default_rng(0), (40, 60), 7)


def test_all_forms_are_one_mask(found):
    for mask in found:
        h, w = mask.shape
        y, x = np.nonzero(mask)
        crop = mask[y.min():y.max() + 1, x.min():x.max() + 1]
        forms = [Rle((h, w), compressed(mask)["counts"]), Rle((h, w), compressed(mask)["counts"].encode()),
                 Rle((h, w), rle.encode(mask).tolist()), Part((h, w), crop, (int(x.min()), int(y.min())))]
        for form in forms:
            assert form.area() == mask.sum()
            assert np.array_equal(form.mask(), mask) and np.array_equal(form.counts(), rle.encode(mask))


def test_together_is_as_alone(found):
    many = [*found, np.zeros((40, 60), bool), np.ones((40, 60), bool)]
    texts = [compressed(mask)["counts"] for mask in many]
    for mask, counts in zip(many, rle.decompress_all(texts)):
        assert np.array_equal(rle.decode(counts, (40, 60)), mask)
    masks = [Rle((40, 60), texts[0]), Part((40, 60), many[1]), Rle((40, 60), texts[2])]
    assert all(np.array_equal(a, rle.encode(b)) for a, b in zip(decode_all(masks), many))


def test_empty_texts_among_others(found):
    text = compressed(found[0])["counts"]
    assert [len(counts) for counts in rle.decompress_all(["", text, ""])] == [0, len(rle.encode(found[0])), 0]
    assert rle.decompress_all([]) == []


@pytest.mark.parametrize("data", ["~~~~", "o", "", [1, 2, 3], [-5, 2405], "PPYo1", [[1], [2]], ["a"], None])
def test_damaged_masks(data, found):
    good = Rle((40, 60), compressed(found[0])["counts"])
    for masks in ([Rle((40, 60), data)], [good, Rle((40, 60), data)]):
        with pytest.raises(InputError, match="run lengths"):
            decode_all(masks)


def test_a_text_may_not_run_into_the_next(found):
    text = compressed(found[0])["counts"]
    with pytest.raises(InputError, match="damaged"):
        rle.decompress_all([text[:-1] + "o", text])


def test_union_of_polygons(found):
    polygons = [[1, 1, 20, 1, 20, 20, 1, 20], [10.5, 10, 50, 12, 30, 38.2]]
    official = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 60))).astype(bool)
    assert np.array_equal(Polygons((40, 60), polygons).mask(), official)


def test_sizes_are_compared(found):
    record = Record("a", None, [Part((40, 60), found[0]), Part((60, 40), found[0].T)])
    with pytest.raises(InputError, match="a mask of 40 x 60 pixels.*picture is 60 x 40"):
        record.check_size((40, 60))
