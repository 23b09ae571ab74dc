"""Over many devices: a step or a function written for one device, wrapped once.

Training: a step `step(state, batch, axis_name=None) -> (state, metrics)` computes sums over its pictures and, where it
is given an axis name, adds them up over that axis. `pmap_step` runs it by `jax.pmap`; `mesh_step` by `jit` over a mesh,
data-parallel, with parameters divided among devices (`samjax.sharding`), or both. Both have the same four methods:

    run = mesh_step(step, make_mesh(fsdp=8), RULES)
    state = run.place(state)                       # from the host (or one device) to where it belongs
    state, metrics = run(state, run.feed(batch))   # the state is donated: use the new one
    metrics = run.fetch(metrics)                   # NumPy, one copy

With several processes (`jax.distributed`) each feeds its own share of the global batch, shares of equal size.

Inference: `mesh_map` and `pmap_map` do the same for functions (params, batch) -> what belongs to each item, over the
devices of this process. Each device runs the very program that one device alone would run on its share, so results do
not depend on how many there are.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from samjax.errors import InputError
from samjax.sharding import DATA, FSDP, Rules, key_name, make_mesh, shardings

AXIS = "devices"  # of pmap_step: what a step is given as axis_name


def pmap_step(step: Callable, devices: Sequence | None = None) -> "PmapStep":
    """A step over all devices (or those given) by `jax.pmap`: every device holds the whole state."""
    return PmapStep(step, devices)


def mesh_step(step: Callable, mesh: Mesh | None = None, rules: Rules | None = None) -> "MeshStep":
    """A step over a mesh (default: `samjax.sharding.make_mesh()`) by `jit`.

    rules: None keeps the whole state on every device; `samjax.sharding.RULES` divides it along the axis "fsdp".
    The step sees the global batch and no axis name. What it adds up by `samjax.train.sums.summed` each device adds up
    of its own pictures first; for the rest the compiler finds the communication. Divided parameters (a state's field
    `params`) are gathered at the start of a step, and the sum of the gradients is divided at its end.
    """
    return MeshStep(step, mesh, rules)


class PmapStep:
    """See `pmap_step`. Arrays of the state have a leading axis of this process's devices."""

    def __init__(self, step: Callable, devices: Sequence | None = None):
        self.devices = list(devices if devices is not None else jax.devices())
        self.local = sum(device.process_index == jax.process_index() for device in self.devices)
        self._run = jax.pmap(partial(step, axis_name=AXIS), AXIS, donate_argnums=0, devices=devices)
        self._copy = _copier(devices)

    def place(self, state):
        """A state of the host, copied to every device. The original is not touched."""
        return self._copy(state, np.zeros(self.local))

    def feed(self, batch):
        """This process's part of a batch, host arrays (b, ...), cut into equal shares for its devices."""
        return jax.tree.map(lambda x: _cut(x, self.local), batch)

    def __call__(self, state, batch):
        """One step; the state is donated."""
        return self._run(state, batch)

    def fetch(self, tree):
        """One copy of what is the same on all devices (a state, metrics), as NumPy."""
        return jax.tree.map(lambda x: _to_host(x, lambda x: x.addressable_shards[0].data[0]), tree)


class MeshStep:
    """See `mesh_step`. Arrays are global ones, sharded as the rules say."""

    def __init__(self, step: Callable, mesh: Mesh | None = None, rules: Rules | None = None):
        self.mesh = make_mesh() if mesh is None else mesh
        self.rules = rules
        self.step = step
        self._rows = NamedSharding(self.mesh, PartitionSpec((DATA, FSDP)))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._programs = {}
        self._gather = jax.jit(lambda x: x, out_shardings=self._everywhere)

    def shardings(self, state):
        """A NamedSharding for each array of a state (or of its shapes)."""
        return shardings(state, self.mesh, self.rules)

    def place(self, state):
        """A state of the host, each device with what the rules give it. The original is not touched."""
        return jax.tree.map(_scatter, state, self.shardings(state))

    def feed(self, batch):
        """This process's part of a batch, host arrays (b, ...), as global arrays whose first axis is divided."""
        share = sum(device.process_index == jax.process_index() for device in self.mesh.devices.flat)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._rows, _divisible(x, share)), batch)

    def __call__(self, state, batch):
        """One step; the state is donated."""
        return self.program(state)(state, batch)

    def program(self, state) -> Callable:
        """The jitted step for states of this structure, for instance to be lowered and looked at."""
        structure = jax.tree.structure(state)
        if structure not in self._programs:
            out = self.shardings(state), self._everywhere
            self._programs[structure] = jax.jit(self._gathered, donate_argnums=0, out_shardings=out)
        return self._programs[structure]

    def _gathered(self, state, batch):
        """The step, whose parameters (the state's field `params`) are gathered before their first use.

        Without this the compiler may divide activations as it finds the weights divided, and exchange those instead.
        """
        def gather(path, x):
            return jax.lax.with_sharding_constraint(x, self._everywhere) if key_name(path[0]) == "params" else x

        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # sums, and fused attention, divide by it
            return self.step(jax.tree_util.tree_map_with_path(gather, state), batch)

    def fetch(self, tree):
        """One copy of a tree of global arrays, whole, as NumPy; all processes must call it together."""
        return jax.tree.map(lambda x: _to_host(x, self._whole), tree)

    def _whole(self, x):
        if x.is_fully_addressable:
            return x
        if not x.is_fully_replicated:
            x = self._gather(x)
        return x.addressable_data(0)


def mesh_map(function: Callable, devices: Sequence | None = None) -> "MeshMap":
    """function(params, batch) over this process's devices by `jit` and `shard_map`.

    batch: a tree of arrays with a leading axis of items; so is what comes back. Each device calls the function with
    all of params and its share of the items.
    """
    return MeshMap(function, devices)


def pmap_map(function: Callable, devices: Sequence | None = None) -> "PmapMap":
    """The same by `jax.pmap`."""
    return PmapMap(function, devices)


class MeshMap:
    """See `mesh_map`."""

    def __init__(self, function: Callable, devices: Sequence | None = None):
        self.devices = list(devices if devices is not None else jax.local_devices())
        # In the order given, which `parts` answers in (`jax.make_mesh` orders a slice's chips anew).
        mesh = Mesh(np.array(self.devices), (DATA,), axis_types=(jax.sharding.AxisType.Auto,))
        self._rows, self._everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((DATA,), ()))
        specs = PartitionSpec(), PartitionSpec(DATA)
        self.program = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(DATA),
                                             check_vma=False))

    def place(self, params):
        """The parameters on every device."""
        return jax.device_put(params, self._everywhere)

    def feed(self, batch):
        """Host arrays (b, ...), divided among the devices."""
        return jax.tree.map(lambda x: jax.device_put(_divisible(x, len(self.devices)), self._rows), batch)

    def __call__(self, params, batch):
        """What the function gives for the items of `feed`, still on the devices."""
        return self.program(params, batch)

    def fetch(self, tree):
        """NumPy arrays (b, ...)."""
        return jax.tree.map(np.asarray, tree)

    def parts(self, tree) -> list:
        """The share of each device, as trees of NumPy arrays; on a CPU without a copy."""
        leaves, structure = jax.tree.flatten(tree)
        by_device = [{shard.device: shard.data for shard in leaf.addressable_shards} for leaf in leaves]
        return [structure.unflatten([np.asarray(shards[device]) for shards in by_device]) for device in self.devices]


class PmapMap:
    """See `pmap_map`."""

    def __init__(self, function: Callable, devices: Sequence | None = None):
        self.devices = list(devices if devices is not None else jax.local_devices())
        self._run = jax.pmap(function, AXIS, devices=self.devices)
        self._copy = _copier(self.devices)

    def place(self, params):
        """The parameters on every device."""
        return self._copy(params, np.zeros(len(self.devices)))

    def feed(self, batch):
        """Host arrays (b, ...), divided among the devices."""
        return jax.tree.map(lambda x: _cut(x, len(self.devices)), batch)

    def __call__(self, params, batch):
        """What the function gives for the items of `feed`, still on the devices."""
        return self._run(params, batch)

    def fetch(self, tree):
        """NumPy arrays (b, ...)."""
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def _divisible(x, devices: int) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim == 0 or x.shape[0] % devices or not x.shape[0]:
        raise InputError(f"a batch of shape {x.shape} cannot be divided evenly among {devices} devices: its first axis "
                         "must be a multiple")
    return x


def _cut(x, devices: int) -> np.ndarray:
    x = _divisible(x, devices)
    return x.reshape(devices, -1, *x.shape[1:])


def _copier(devices: Sequence | None) -> Callable:
    """(tree, anything with a row for each local device) -> a copy of the tree for each."""
    return jax.pmap(lambda tree, row: tree, AXIS, in_axes=(None, 0), devices=devices)


def _is_key(x) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _scatter(x, sharding: NamedSharding) -> jax.Array:
    """An array of the host to the devices of this process, each a copy of its own: it may be donated."""
    if _is_key(x):
        return jax.random.wrap_key_data(_scatter(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def _to_host(x, pick: Callable):
    if _is_key(x):
        return jax.random.wrap_key_data(_to_host(jax.random.key_data(x), pick), impl=jax.random.key_impl(x))
    return np.array(pick(x))
