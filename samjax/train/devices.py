"""A step on one device, behind the same four methods that `samjax.parallel` gives for many."""

from collections.abc import Callable

import jax
import numpy as np

from samjax.errors import InputError

SHARDINGS = ("one", "pmap", "data", "fsdp")


class OneStep:
    """See `samjax.parallel.pmap_step`: place, feed, call, fetch, on the default device."""

    def __init__(self, step: Callable):
        self._run = jax.jit(step, donate_argnums=0)

    def place(self, state):
        return jax.tree.map(lambda x: jax.device_put(np.array(x)), state)  # a copy, since steps take it over

    def feed(self, batch):
        return batch

    def __call__(self, state, batch):
        return self._run(state, batch)

    def fetch(self, tree):
        return jax.tree.map(np.array, tree)


def spread(step: Callable, sharding: str, fsdp: int = 0):
    """The step as `sharding` says: "one" device; all of them by "pmap", by a mesh with the state on every device
    ("data"), or with the state divided among groups of `fsdp` of them ("fsdp"; 0: one group of all)."""
    from samjax import parallel
    from samjax.sharding import RULES, make_mesh

    if sharding == "one":
        return OneStep(step)
    if sharding == "pmap":
        return parallel.pmap_step(step)
    if sharding == "data":
        return parallel.mesh_step(step)
    if sharding == "fsdp":
        return parallel.mesh_step(step, make_mesh(fsdp=fsdp or jax.device_count()), RULES)
    raise InputError(f"sharding {sharding!r} is none of {', '.join(SHARDINGS)}")
