"""A step that is quick to compile, with the shape of a training step; as a script, one of two processes that run it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import quick_programs  # noqa: F401 (the same programs in a process of its own)

ROWS, WIDTH = 16, 16


@partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "momentum", "key"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    momentum: dict
    key: jax.Array


def new_state() -> State:
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape, np.float32) / np.float32(4)
    params = {"image_encoder": {"blocks_0": {
        "mlp_in": {"kernel": draw(WIDTH, 4 * WIDTH), "bias": draw(4 * WIDTH)},
        "mlp_out": {"kernel": draw(4 * WIDTH, WIDTH), "bias": draw(WIDTH)}}},
        "mask_decoder": {"iou_token": draw(WIDTH)}}
    return State(np.int32(0), params, jax.tree.map(np.zeros_like, params), jax.random.key(7))


def new_batch(number: int) -> dict:
    random = np.random.default_rng(number)
    return {"x": random.standard_normal((ROWS, WIDTH), np.float32), "y": random.standard_normal(ROWS, np.float32)}


def step(state: State, batch: dict, axis_name=None):
    """Regression with noise for each row of the global batch; its loss is a mean over that batch."""
    rows = batch["x"].shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    key = jax.random.fold_in(state.key, state.step)
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(rows))
    noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)

    def loss(params):
        mlp = params["image_encoder"]["blocks_0"]
        hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ mlp["mlp_in"]["kernel"] + mlp["mlp_in"]["bias"])
        out = hidden @ mlp["mlp_out"]["kernel"] + mlp["mlp_out"]["bias"]
        return jnp.sum((out @ params["mask_decoder"]["iou_token"] - batch["y"]) ** 2)

    total, gradients = jax.value_and_grad(loss)(state.params)
    count = jnp.float32(rows)
    if axis_name is not None:
        total, gradients, count = jax.lax.psum((total, gradients, count), axis_name)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g / count, state.momentum, gradients)
    params = jax.tree.map(lambda p, m: p - 0.05 * m, state.params, momentum)
    return State(state.step + 1, params, momentum, state.key), {"loss": total / count}


def train(run, rows: slice = slice(None), steps: int = 5):
    """Losses and the last state, on the host."""
    state, losses = run.place(new_state()), []
    for number in range(steps):
        batch = {name: array[rows] for name, array in new_batch(number).items()}
        state, metrics = run(state, run.feed(batch))
        losses.append(run.fetch(metrics)["loss"].item())
    return losses, run.fetch(state)


if __name__ == "__main__":
    import json
    import sys

    from samjax.parallel import mesh_step, pmap_step
    from samjax.sharding import RULES, make_mesh

    address, process = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(address, 2, process)
    assert (len(jax.devices()), len(jax.local_devices())) == (4, 2)
    share = slice(process * ROWS // 2, (process + 1) * ROWS // 2)
    runs = {"pmap": pmap_step(step), "mesh": mesh_step(step), "fsdp": mesh_step(step, make_mesh(4), RULES),
            "both": mesh_step(step, make_mesh(2), RULES)}
    found = {}
    for name, run in runs.items():
        losses, state = train(run, share, 3)
        found[name] = losses, float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(state.params)))
    print(json.dumps(found))
