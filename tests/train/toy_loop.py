"""A run of the loop on a problem that compiles at once; as a script, one that can be killed: OUT STEPS SECONDS; or one
of two processes with two devices each: OUT STEPS SECONDS ADDRESS PROCESS."""

import json
import sys
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import quick_programs  # noqa: F401 (the same programs in a process of its own)

from samjax.errors import InputError
from samjax.train import loop, together
from samjax.train.loop import Plan
from samjax.train.recipe import FINETUNE
from samjax.train.step import TrainState

WIDTH, ROWS = 8, 8
PARAMS = {"mask_decoder": {"kernel": np.linspace(-1, 1, WIDTH, dtype=np.float32)}}
RECIPE = replace(FINETUNE, steps=40, warmup=5)


def init_state(config, recipe, params, key, trains=None) -> TrainState:
    params = jax.tree.map(jnp.array, params)
    return TrainState(jnp.zeros((), jnp.int32), params, (jax.tree.map(jnp.zeros_like, params),),
                      jax.random.key_data(key))


def make_step(config, recipe, trains=None):
    """Regression with momentum, and noise by the step."""
    def step(state, batch, axis_name=None):
        noise = jax.random.normal(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), (WIDTH,))
        total = lambda x: jax.lax.psum(x, axis_name) if axis_name else x

        def loss(params):
            kernel = params["mask_decoder"]["kernel"] + 0.01 * noise
            return jnp.square(batch["x"] @ kernel - batch["y"]).sum() / ROWS

        value, gradients = total(jax.value_and_grad(loss)(state.params))
        finite = jnp.isfinite(value)
        momentum = jax.tree.map(lambda m, g: jnp.where(finite, 0.9 * m + g, m), state.opt_state[0], gradients)
        params = jax.tree.map(lambda x, m: x - 0.01 * jnp.where(finite, m, 0.0), state.params, momentum)
        metrics = {"loss": value, "grad_norm": jnp.abs(gradients["mask_decoder"]["kernel"]).sum(), "finite": finite}
        return TrainState(state.step + 1, params, (momentum,), state.key), metrics

    return step


class Numbers:
    """Batches by their number, as an iterator whose position can be saved. at: number -> called before that batch.
    rows: this process's."""

    def __init__(self, at=None, wait: float = 0.0, bad=(), rows: slice = slice(None)):
        self.number, self.at, self.wait, self.bad, self.rows = 0, at or {}, wait, bad, rows

    def __iter__(self):
        self.number = 0
        return self

    def __next__(self):
        time.sleep(self.wait)
        self.at.get(self.number, lambda: None)()
        random = np.random.default_rng(self.number)
        x, y = random.standard_normal((ROWS, WIDTH), np.float32), random.standard_normal(ROWS, np.float32)
        if self.number in self.bad:
            x[0, 0] = np.nan
        self.number += 1
        return {name: array[self.rows] for name, array in
                {"x": x, "y": y, "valid": np.ones((ROWS, 1), bool)}.items()}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


PLAN = Plan(save_every=5)


def run(out, batches=None, steps: int = 40, plan: Plan = PLAN, **settings):
    """`loop.train` of the toy."""
    before = loop.init_state, loop.make_step
    loop.init_state, loop.make_step = init_state, make_step
    try:
        return loop.train(None, replace(RECIPE, steps=steps), PARAMS, batches or Numbers(), out, plan,
                          trains=lambda path: True, **settings)
    finally:
        loop.init_state, loop.make_step = before


def one_of_two(out, steps: int, wait: float, address: str, process: int, fails: int = -1) -> None:
    """Prints how it ended. fails: the batch that the second process cannot make."""
    jax.distributed.initialize(address, 2, process)
    together.SECONDS = 0.3
    mine = slice(process * ROWS // 2, (process + 1) * ROWS // 2)
    evaluate = lambda params, step: {"score": float(together.gathered(process).sum())}  # 1, if both are heard
    def fail():
        raise InputError("a picture is broken")

    batches = Numbers({fails: fail} if process else {}, wait, rows=mine)
    plan = Plan(save_every=3, evaluate_every=20, sharding="data")
    try:
        outcome = run(out, batches, steps, plan, evaluate=evaluate)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"reason": outcome.reason, "step": outcome.step, "resumed": outcome.resumed,
                      "scores": outcome.scores, "kernel": outcome.params["mask_decoder"]["kernel"].tolist()}))


if __name__ == "__main__":
    out, steps, wait, *place = sys.argv[1:]
    if place:
        one_of_two(out, int(steps), float(wait), place[0], *map(int, place[1:]))
    else:
        run(out, Numbers(wait=float(wait)), int(steps), Plan(save_every=3))
