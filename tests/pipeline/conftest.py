import os

import pytest

from samjax.config import Decoder, SamConfig, ViT


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Indexes are kept here."""
    monkeypatch.setenv("SAMJAX_CACHE", os.fspath(tmp_path / "cache"))


@pytest.fixture
def config():
    """64 x 64 pixels, masks of 16 x 16."""
    return SamConfig("custom", ViT(width=32, depth=1, heads=2), Decoder(mlp=64), channels=32, image_size=(64, 64))
