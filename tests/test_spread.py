"""A model of ViT-H's width over eight devices."""

import jax
import pytest
import spread
from conftest import random_params


@pytest.mark.slow
def test_inference_over_eight_devices_is_that_of_one():
    config = spread.shallow(depth=2, size=128)
    found = spread.compare(config, random_params(config), jax.devices())
    assert len(jax.devices()) == 8 and set(found) == {"mesh", "pmap"}
    for each in found.values():
        assert each["from_one_device"] == 0.0
        first, second = each["programs_compiled"]
        assert first >= 1 and second == 0
