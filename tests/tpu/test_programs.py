"""Small programs for a slice of four TPUs: they send gradients and parameters, and nothing else.

They are compiled without a TPU, by libtpu; where it is not installed these tests are not collected.

    python -m venv tpu && . tpu/bin/activate && pip install ".[test]" "jax[tpu]==0.10.2" && python -m pytest tests/tpu
"""

import math
import os
from dataclasses import replace

import jax
import numpy as np
import pytest
import tpu_programs
from collectives import collectives, unexpected
from tpu_programs import Case, environment, program_of, sent_shapes, topology_devices

from samjax.config import Decoder, SamConfig, ViT
from samjax.parallel import mesh_map
from samjax.sharding import make_mesh
from samjax.train.recipe import Recipe

os.environ.update(environment())  # before libtpu is loaded
pytestmark = [pytest.mark.tpu, pytest.mark.whole]
CONFIG = SamConfig("custom", ViT(width=64, depth=4, heads=2, global_blocks=(1, 3), window=3, scan=True, remat=True),
                   Decoder(depth=1, mlp=64), channels=32, image_size=(64, 96), dtype="bfloat16", decode_chunk=2)
RECIPE = Recipe(objects=2, points=2)
SMALL = 16  # numbers: sums over the rounds


def compiled(case: Case):
    program, args, params = program_of(case, topology_devices(case.topology), CONFIG, RECIPE)
    done = program.trace(*args).lower(lowering_platforms=("tpu",)).compile()
    return collectives(done.as_text()), sent_shapes(CONFIG, params, case.group), done.memory_analysis()


@pytest.mark.parametrize("sharding", ["data", "fsdp"])
def test_a_training_step_sends_gradients_and_parameters_only(sharding):
    case = Case("vit_b", "step", "v5e:2x2", sharding)
    found, shapes, memory = compiled(case)
    assert not unexpected(found, shapes, case.collectives, SMALL)
    kinds = {each.kind for each in found}
    assert kinds & {"all-reduce", "reduce-scatter"} and ("all-gather" in kinds) == (sharding == "fsdp")
    assert 0 < memory.argument_size_in_bytes < 2**30


def test_groups_add_up_shares_among_each_other(monkeypatch):
    """Two groups of two chips: within one each chip gets its share of the sum, and only shares go to the other."""
    monkeypatch.setattr(tpu_programs, "GROUP", 2)
    case = Case("vit_b", "step", "v5e:2x2", "fsdp")
    found, shapes, _ = compiled(case)
    assert not unexpected(found, shapes, case.collectives, SMALL)
    sent = {kind: {math.prod(shape) for each in found if each.kind == kind for _, shape in each.shapes}
            for kind in case.collectives}
    mlp = 2 * 64 * 256  # of the two windowed blocks
    assert mlp in sent["reduce-scatter"] and mlp not in sent["all-reduce"] and mlp // 2 in sent["all-reduce"]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_inference_sends_nothing(kind):
    config = replace(CONFIG, encoder=replace(CONFIG.encoder, remat=False))
    case = Case("vit_b", kind, "v5e:2x2")
    program, args, _ = program_of(case, topology_devices(case.topology), config, RECIPE)
    text = program.trace(*args).lower(lowering_platforms=("tpu",)).compile().as_text()
    assert "ENTRY" in text and not collectives(text)


@pytest.mark.parametrize("slices", [1, 2])
def test_groups_lie_within_a_slice_where_they_fit(slices):
    """Chips of 8 x 8 in groups of 16, no whole axis of the slice: which `jax.make_mesh` refuses."""
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v6e:8x8", num_slices=slices).devices
    mesh = make_mesh(16, chips)
    assert mesh.shape == {"data": 4 * slices, "fsdp": 16} and set(mesh.devices.flat) == set(chips)
    for group in mesh.devices:
        places = np.array([chip.coords for chip in group])
        assert len({getattr(chip, "slice_index", 0) for chip in group}) == 1
        assert np.prod(np.ptp(places, axis=0) + 1) == 16  # a block of neighbours


def test_inference_keeps_the_order_of_devices():
    """Answers are told apart by it; JAX would number these eight chips along a ring."""
    chips = topology_devices("v5e:2x4")
    assert list(mesh_map(lambda params, batch: batch, chips)._rows.mesh.devices) == chips
    assert list(jax.make_mesh((8,), ("data",), devices=chips).devices) != chips
