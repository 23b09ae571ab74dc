"""samjax.ops.masks: the device's measuring against whole masks."""

import dataclasses

import jax
import numpy as np
import pytest

from samjax import upscale
from samjax.config import VIT_B
from samjax.geometry import logits_to_image, target_size
from samjax.ops import masks

SMALL = dataclasses.replace(VIT_B, image_size=(128, 320))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("image_hw", [(90, 131), (300, 40), (1, 1)])
def test_counts_and_boxes_are_those_of_whole_masks(image_hw, padded):
    random = np.random.default_rng(0)
    logits = np.concatenate([random.normal(0, 3, (4, *SMALL.mask_size)), np.full((1, *SMALL.mask_size), -9.0)])
    logits = logits.astype(np.float32)
    padded_hw = tuple(map(masks.bucket, image_hw)) if padded else None
    rows, columns = masks.matrices(SMALL, image_hw, padded_hw)
    assert (len(rows), len(columns)) == (padded_hw or image_hw)
    size = np.array(image_hw, np.int32) if padded else None
    counts, boxes = jax.jit(masks.measure)(logits, rows, columns, np.float32(1), size)
    values = logits_to_image(logits, SMALL, target_size(*image_hw, SMALL.image_size), image_hw)
    for cut, column in zip((1, 0, -1), np.asarray(counts).T):
        assert np.abs(column - (values > cut).sum((1, 2))).max() <= 1  # a value may round across the cut
    grid = upscale.axes(SMALL, image_hw)
    assert [tuple(box) for box in boxes.tolist()] == [upscale.measure(mask, grid, 1.0).box for mask in logits]


def test_buckets():
    sides = range(1, 9000)
    buckets = [masks.bucket(side) for side in sides]
    assert all(side <= bucket < side + 1024 for side, bucket in zip(sides, buckets)) and len(set(buckets)) < 20
