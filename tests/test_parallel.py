"""Wrapped for many devices, a step does what it does on one, and communicates no more than it must."""

import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from conftest import SMALL_VIT, random_params

from samjax import parallel, sharding
from samjax.config import LITE_MEDSAM, VIT_B, VIT_H, VIT_L, VIT_T, TinyViT, ViT
from samjax.errors import InputError
from samjax.model.sam import encode_image, init
from samjax.parallel import mesh_map, mesh_step, pmap_map, pmap_step
from samjax.sharding import RULES, arranged, make_mesh, rule_of, specs

ROOT = Path(__file__).resolve().parents[1]
WRAPPED = {
    "pmap": lambda step: pmap_step(step),
    "pmap 4": lambda step: pmap_step(step, jax.devices()[:4]),
    "mesh": lambda step: mesh_step(step),
    "fsdp": lambda step: mesh_step(step, make_mesh(8), RULES),
    "both": lambda step: mesh_step(step, make_mesh(2), RULES),
}


@pytest.fixture(scope="module")
def alone():
    """Losses and the last state of five steps on one device."""
    state, losses, step = toy.new_state(), [], jax.jit(toy.step)
    for number in range(5):
        state, metrics = step(state, toy.new_batch(number))
        losses.append(metrics["loss"].item())
    return losses, state


@pytest.mark.parametrize("name", WRAPPED)
def test_five_steps_are_those_of_one_device(alone, name):
    assert len(jax.devices()) == 8
    losses, state = toy.train(WRAPPED[name](toy.step))
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(alone[1].key).tolist()
    for tree in ("params", "momentum"):
        a, b = (jax.tree.leaves(getattr(x, tree)) for x in (state, alone[1]))
        assert all(type(leaf) is np.ndarray for leaf in a)
        for mine, other in zip(a, b):
            np.testing.assert_allclose(mine, other, atol=1e-5)
    assert state.step == 5 and losses[-1] != losses[0]


@pytest.mark.parametrize("name", WRAPPED)
def test_one_program_and_a_donated_state(name):
    traced = []

    def step(state, batch, axis_name=None):
        traced.append(axis_name)
        return toy.step(state, batch, axis_name)

    run, original = WRAPPED[name](step), jax.device_put(toy.new_state())
    state = run.place(original)
    for number in range(3):
        before, (state, _) = state, run(state, run.feed(toy.new_batch(number)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert traced == [parallel.AXIS if name.startswith("pmap") else None]
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(original))
    for mine, other in zip(jax.tree.leaves(original.params), jax.tree.leaves(toy.new_state().params)):
        assert (np.asarray(mine) == other).all()


def test_what_the_rules_divide_is_divided():
    run = mesh_step(toy.step, make_mesh(4), RULES)
    state, _ = run(run.place(toy.new_state()), run.feed(toy.new_batch(0)))
    for tree in (state.params, state.momentum):
        mlp = tree["image_encoder"]["blocks_0"]
        assert mlp["mlp_in"]["kernel"].addressable_data(0).shape == (16, 16)
        assert mlp["mlp_out"]["kernel"].addressable_data(0).shape == (64, 4)
        assert mlp["mlp_in"]["bias"].addressable_data(0).shape == (64,)
    assert state.step.sharding.is_fully_replicated


def test_batches_that_cannot_be_divided():
    for run in (pmap_step(toy.step), mesh_step(toy.step), mesh_map(lambda p, b: b), pmap_map(lambda p, b: b)):
        for rows in (0, 6, 12):
            with pytest.raises(InputError, match="cannot be divided evenly among 8 devices"):
                run.feed({"x": np.zeros((rows, 3), np.float32)})
    with pytest.raises(InputError, match="8 devices cannot form groups of 3"):
        make_mesh(3)


def test_groups_of_a_mesh_lie_within_a_slice():
    """Two hosts of eight GPUs, linked directly within a host; a group of sixteen takes both."""
    gpus = [SimpleNamespace(platform="gpu", device_kind="GPU", id=i, slice_index=i % 2) for i in range(16)]
    at = lambda grid: [[gpu.id for gpu in row] for row in grid]
    assert at(arranged(gpus, 4)) == [[0, 2, 4, 6], [8, 10, 12, 14], [1, 3, 5, 7], [9, 11, 13, 15]]
    assert at(arranged(gpus, 16)) == [[*range(0, 16, 2), *range(1, 16, 2)]]
    assert at(arranged(gpus[:12], 1)) == [[i] for i in (*range(0, 12, 2), *range(1, 12, 2))]


def test_two_processes_of_two_devices(alone):
    """jax.distributed for real: each process feeds its half of the batch."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                                "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, ROOT / "tests/toy.py", address, str(i)], env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(2)]
    try:
        answers = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], answers
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in answers)
    assert first == second and set(first) == {"pmap", "mesh", "fsdp", "both"}
    for losses, size in first.values():
        np.testing.assert_allclose(losses, alone[0][:3], rtol=1e-5)
        np.testing.assert_allclose(size, first["mesh"][1], rtol=1e-5)


# -- the rules -----------------------------------------------------------------------------------------------


CONFIGS = {
    "vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H, "mobile_sam": VIT_T, "lite_medsam": LITE_MEDSAM,
    "vit_h scanned": replace(VIT_H, encoder=replace(VIT_H.encoder, scan=True)),
    "vit_t unfolded": replace(VIT_T, encoder=TinyViT(fold_batch_norm=False)),
}


@lru_cache
def shapes(name):
    return jax.eval_shape(partial(init, CONFIGS[name]), jax.random.key(0))


def named(tree):
    return {"/".join(map(sharding.key_name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_rule_that_eight_devices_can_follow(name):
    params = shapes(name)
    held = total = 0
    for path, leaf in named(params).items():
        dimension = rule_of(path)
        assert dimension is None or leaf.shape[dimension] % 8 == 0, path
        total += leaf.size
        held += leaf.size // (8 if dimension else 1)
    decoder = sum(leaf.size for leaf in jax.tree.leaves(params["mask_decoder"]))
    assert held - decoder < 0.2 * (total - decoder) if "vit_h" in name else held < total
    divided = {path for path, spec in named(specs(params, RULES, 8)).items() if sharding.FSDP in spec}
    assert divided == {path for path in named(params) if rule_of(path) is not None}


def test_every_rule_is_of_use():
    paths = {path for name in CONFIGS for path in named(shapes(name))}
    paths.add("image_encoder/blocks_0/attn/qkv/lora_a")
    for pattern, _ in RULES:
        assert any(re.search(pattern, path) for path in paths), pattern
    for path in paths:
        assert len({dimension for pattern, dimension in RULES if re.search(pattern, path)}) == 1, path


def test_optimizer_states_follow_and_others_stay_whole():
    kernel = {"mlp_in": {"kernel": np.zeros((3, 6))}}
    params = {"image_encoder": {"pos_embed": np.zeros((4, 4, 16)), "blocks_0": kernel}}
    state = {"params": params, "opt_state": ({"mu": params, "count": np.int32(0)}, params), "step": np.int32(1)}
    found = named(specs(state, RULES, 8))
    for place in ("params", "opt_state/0/mu", "opt_state/1"):
        assert tuple(found.pop(f"{place}/image_encoder/pos_embed")) == (None, None, "fsdp")
    assert len(found) == 5 and not any(map(len, found.values()))  # 6 columns cannot be divided by 8
    assert not any(map(len, named(specs(state, None, 8)).values()))
    with pytest.raises(InputError, match="no sharding rule for the parameter image_encoder/new"):
        specs({"mu": {"image_encoder": {"new": np.zeros(8)}}}, RULES, 8)


# -- communication -------------------------------------------------------------------------------------------


CONFIG = replace(SMALL_VIT, encoder=ViT(width=64, depth=2, heads=2, global_blocks=(1,), window=3), channels=64)
SHORT = replace(CONFIG, encoder=replace(CONFIG.encoder, depth=1, global_blocks=()))
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(")


def encoder_step(config, state, batch, axis_name=None):
    def loss(params):
        return jnp.sum(encode_image(config, params, batch["pixels"]) ** 2)

    gradients = jax.grad(loss)(state.params)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state.momentum, gradients)
    params = jax.tree.map(lambda p, m: p - 0.05 * m, state.params, momentum)
    return toy.State(state.step + 1, params, momentum, state.key), {}


def communication(config, *wrap) -> list[tuple[str, str]]:
    """(kind, shapes) of each collective in the compiled step of a ViT's encoder."""
    run = mesh_step(partial(encoder_step, config), *wrap)
    params = {"image_encoder": random_params(config)["image_encoder"]}
    state = run.place(toy.State(np.int32(0), params, params, jax.random.key(0)))
    batch = run.feed({"pixels": np.zeros((8, *config.image_size, 3), np.float32)})
    text = run.program(state).lower(state, batch).compile().as_text()
    return [(kind, shapes) for shapes, kind, _ in COLLECTIVE.findall(text)]


def test_data_parallel_steps_only_add_up_gradients():
    found = communication(SHORT)
    assert {kind for kind, _ in found} == {"all-reduce"}


def test_sharded_steps_gather_parameters_and_nothing_else():
    found = communication(CONFIG, make_mesh(8), RULES)
    assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    shapes = Counter(tuple(leaf.shape) for leaf in jax.tree.leaves(random_params(CONFIG)["image_encoder"]))
    gathered = [tuple(map(int, re.search(r"\[([\d,]*)\]", shape)[1].split(","))) for kind, shape in found
                if kind == "all-gather"]
    assert gathered and not Counter(gathered) - shapes


# -- inference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [mesh_map, pmap_map])
def test_a_function_over_devices_gives_the_bits_of_one_device(wrap):
    config, params = SHORT, {"image_encoder": random_params(SHORT)["image_encoder"]}

    def encode(params, batch):
        return {"features": encode_image(config, params, batch["pixels"]), "sum": batch["pixels"].sum((1, 2, 3))}

    pixels = np.random.default_rng(0).standard_normal((4, *config.image_size, 3), np.float32)
    one, four = wrap(encode, jax.devices()[:1]), wrap(encode, jax.devices()[:4])
    answers = []
    for run, parts in ((one, np.split(pixels, 4)), (four, [pixels])):
        placed = run.place(params)
        found = [run.fetch(run(placed, run.feed({"pixels": part}))) for part in parts]
        answers.append(jax.tree.map(lambda *x: np.concatenate(x), *found))
    for a, b in zip(*map(jax.tree.leaves, answers)):
        assert a.shape[0] == 4 and (a == b).all()
    np.testing.assert_allclose(answers[0]["features"], encode_image(config, params, jnp.array(pixels)), atol=1e-4)


def test_parts_are_the_devices_shares():
    run = mesh_map(lambda params, x: {"y": x * params}, jax.devices()[2:6])
    parts = run.parts(run(run.place(np.float32(2)), run.feed(np.arange(8, dtype=np.float32))))
    assert [part["y"].tolist() for part in parts] == [[0, 2], [4, 6], [8, 10], [12, 14]]
