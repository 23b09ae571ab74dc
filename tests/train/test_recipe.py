"""Recipes: the paper's numbers, and settings as people write them."""

import dataclasses

import pytest

from samjax.errors import InputError
from samjax.train.recipe import PRESETS, Recipe, from_dict, preset, to_dict

# Segment Anything, appendix A, "Training recipe", and appendix B for mask generation.
PAPER = {
    "vit_h": dict(steps=90_000, batch=256, lr=8e-4, layer_decay=0.8, drop_path=0.4, drops=(60_000, 86_666)),
    "vit_l": dict(steps=180_000, batch=128, lr=4e-4, layer_decay=0.8, drop_path=0.4),
    "vit_b": dict(steps=180_000, batch=128, lr=8e-4, layer_decay=0.6, drop_path=0.6),
    "mask_generation": dict(steps=177_656, boxes=0.0, points=4, decoder_depth=3, jitter=(0.1, 2.0), rounds=6),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_hold_the_papers_values(name):
    recipe = preset(name)
    for setting, value in PAPER[name].items():
        assert getattr(recipe, setting) == value, setting
    assert (recipe.betas, recipe.weight_decay, recipe.warmup, recipe.dropout) == ((0.9, 0.999), 0.1, 250, 0.1)
    assert (recipe.focal, recipe.dice, recipe.iou, recipe.objects) == (20, 1, 1, 64)
    assert len(recipe.drops) == 2 and recipe.drops[1] < recipe.steps
    for drop, share in zip(recipe.drops, (60_000 / 90_000, 86_666 / 90_000)):
        assert abs(drop / recipe.steps - share) < 1e-5


def test_what_a_pipeline_is_given():
    from samjax.data import Augment

    assert Recipe().pipeline() == {"batch": 256, "objects": 64, "augment": None}
    assert preset("mask_generation").pipeline()["augment"] == Augment(flip=0.0, scale=(0.1, 2.0))


def test_eleven_rounds():
    assert Recipe().rounds == 11 and Recipe().points == 9


@pytest.mark.parametrize("name", PRESETS)
def test_dict_round_trip(name):
    import json

    recipe = preset(name)
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_from_dict_starts_from_a_preset():
    assert from_dict({"preset": "vit_b", "lr": 1}) == dataclasses.replace(preset("vit_b"), lr=1)
    assert from_dict({}) == Recipe()


@pytest.mark.parametrize("values, said", [
    ({"layer_decai": 0.5}, "did you mean 'layer_decay'"),
    ({"zzzzzz": 0.5}, "it knows batch"),
    ({"preset": "vit_x"}, "none of vit_h, vit_l"),
    ({"lr": "high"}, "lr cannot be 'high'"),
    ({"lr": float("nan")}, "lr cannot be nan"),
    ({"lr": -1.0}, "lr must be at least 0"),
    ({"points": 2.0}, "points cannot be 2.0"),
    ({"points": True}, "points cannot be True"),
    ({"boxes": 1.5}, "boxes must be from 0 to 1"),
    ({"drop_path": 1.0}, "drop_path must be"),
    ({"train": "neck"}, "none of everything"),
    ({"iou_of": "two"}, "none of best, all"),
    ({"accumulate": 3}, "a divisor of the batch (256)"),
    ({"jitter": [2.0, 0.1]}, "the smaller first"),
    ({"refinements": 3}, "0, 1 or 2"),
    ({"betas": [0.9]}, "two numbers"),
    (["lr"], "a table of settings"),
])
def test_mistakes_are_named(values, said):
    with pytest.raises(InputError) as caught:
        from_dict(values)
    assert said in str(caught.value) and "\n" not in str(caught.value)
