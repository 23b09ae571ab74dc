"""What fine-tuning adds around a step: a rate that falls to 0 over a length that may still change, a moving average of
the trained parameters, and a pull towards where they began.

All of it lives in the state, so a run that was broken off goes on exactly, and any wrapper of devices serves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from samjax.train.optim import Rule, make_schedule, split, unite
from samjax.train.recipe import Recipe
from samjax.train.step import TrainState


@partial(jax.tree_util.register_dataclass, meta_fields=[],
         data_fields=["step", "params", "opt_state", "key", "average", "origin", "total"])
@dataclass(frozen=True)
class AnnealState(TrainState):
    """average, origin: trees of the trained parameters: their moving average, and their values at the start ({} where
    they are not asked for). total: int32 scalar, the steps of the whole run; the host may change it."""

    average: dict
    origin: dict
    total: Array


@dataclass(frozen=True)
class Anneal:
    """warmup: steps before the fall begins; average: decay of the moving average, 0 for none (early on it is less, so
    that the start does not weigh); pull: how fast parameters would return to their origin, relative to the rate."""

    warmup: int = 0
    average: float = 0.0
    pull: float = 0.0


def begin(state: TrainState, anneal: Anneal, trains: Rule, total: int) -> AnnealState:
    """The state before the first step, from that of `init_state`."""
    chosen, _ = split(state.params, trains)
    copy = lambda wanted: jax.tree.map(jnp.array, chosen) if wanted else {}
    return AnnealState(state.step, state.params, state.opt_state, state.key, copy(anneal.average), copy(anneal.pull),
                       jnp.asarray(total, jnp.int32))


def annealed(step: Callable, recipe: Recipe, anneal: Anneal, trains: Rule) -> Callable:
    """A step like the given one (of a recipe whose schedule is "constant") for states of `begin`.

    Each change of a parameter is multiplied by half a cosine, 1 until the warm-up ends and 0 at state.total; then the
    parameter moves towards its origin by rate * pull of the distance (L2-SP of Li et al., 2018, decoupled).
    """
    schedule = make_schedule(recipe)

    def run(state: AnnealState, batch: dict, axis_name: str | None = None) -> tuple[AnnealState, dict]:
        before, _ = split(state.params, trains)
        inner, metrics = step(TrainState(state.step, state.params, state.opt_state, state.key), batch,
                              axis_name=axis_name)
        after, frozen = split(inner.params, trains)
        length = jnp.maximum(state.total - anneal.warmup, 1).astype(jnp.float32)
        share = jnp.clip((state.step - anneal.warmup).astype(jnp.float32) / length, 0.0, 1.0)
        factor = 0.5 * (1.0 + jnp.cos(math.pi * share))
        rate = schedule(state.step) * factor
        chosen = jax.tree.map(lambda old, new: old + factor * (new - old), before, after)
        if anneal.pull:
            chosen = jax.tree.map(lambda x, x0: x - rate * anneal.pull * (x - x0), chosen, state.origin)
        average = state.average
        if anneal.average:
            count = inner.step.astype(jnp.float32)
            decay = jnp.minimum(anneal.average, (1.0 + count) / (10.0 + count))
            average = jax.tree.map(lambda mean, x: decay * mean + (1.0 - decay) * x, average, chosen)
        metrics = metrics | {"learning_rate": rate}
        return AnnealState(inner.step, unite(chosen, frozen), inner.opt_state, inner.key, average, state.origin,
                           state.total), metrics

    return run


def result(state: TrainState) -> dict:
    """The parameters to be used: the moving averages in the place of what they average."""
    average = getattr(state, "average", {})
    if not average:
        return state.params
    return unflatten_dict(flatten_dict(state.params, sep="/") | flatten_dict(average, sep="/"), sep="/")
