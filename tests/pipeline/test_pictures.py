"""Pictures alone: their names, their pixels, and batches of them."""

import contextlib
import pickle

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("grain")

from samjax.data import Augment, Pictures, make_pipeline
from samjax.errors import InputError
from samjax.geometry import prepare
from samjax.inputs import find_sources


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("b.png", "sub/a.jpg", "sub/c.png")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (40, 50 + 10 * k, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_names_are_those_of_embed(folder, monkeypatch):
    monkeypatch.chdir(folder / "sub")  # where one is does not matter
    source = Pictures(folder)
    assert source.names() == [found.name for found in find_sources([str(folder)], "elsewhere", False)[0]]
    assert source.names() == ["b.png", "sub/a.jpg", "sub/c.png"] and source.skipped == 1
    assert Pictures([folder / "b.png", str(folder / "sub" / "*.png")]).names() == ["b.png", "c.png"]
    record = pickle.loads(pickle.dumps(source))[2]
    assert record.name == "sub/c.png" and record.image.shape == (40, 70, 3) and not record.objects
    with pytest.raises(InputError, match="no pictures"):
        Pictures(folder / "*.txt")


def test_batches(folder, config):
    """In the frame of inference, without masks; or changed at random."""
    plain = make_pipeline([Pictures(folder)], config, batch=3, objects=0, shuffle=False, repeat=False)
    with contextlib.closing(iter(plain)) as batches:
        batch = next(batches)
    for i, record in enumerate(Pictures(folder)):
        pixels, size = prepare(record.image, config)
        assert np.array_equal(batch["image"][i], pixels) and tuple(batch["size"][i]) == size
    assert batch["masks"].shape == (3, 0, 16, 16) and batch["valid"].shape == (3, 0)
    changed = make_pipeline([Pictures(folder)], config, batch=3, objects=0, shuffle=False, augment=Augment(1.0))
    with contextlib.closing(iter(changed)) as batches:
        mirrored = next(batches)
    for a, b, (h, w) in zip(mirrored["image"], batch["image"], batch["size"]):
        assert np.array_equal(a[:h, :w], b[:h, :w][:, ::-1])
