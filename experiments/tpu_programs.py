"""The programs that `tpu_compile.py` compiles for slices of TPUs: which, for what, and with how much on each chip.

The shapes on a chip are those of the paper's run (Segment Anything, appendix A): one image of 1024 pixels and 64 masks
on each of 256 devices, all eleven rounds. Slices of fewer chips than the batch has images hold more of them on each
(v6e 8x8: 256 / 64 = 4), taken one after the other (`accumulate`). Everything computes in bfloat16, blocks are scanned
over and rematerialised in the step.
"""

import dataclasses
from dataclasses import dataclass, replace
from functools import partial

CHIPS = {"v5e:2x2": 4, "v5e:16x16": 256, "v6e:8x8": 64}
HBM = {"v5e": 16e9, "v6e": 32e9}  # bytes a chip; sources in scaling.py
BATCH = {"vit_b": 128, "vit_h": 256}  # of the recipes
IMAGES, POINTS, OBJECTS = 8, 64, 16  # encoded at once, decoded at once, played at once in the step
# Chips that hold a state together: 1280 columns over 16 chips are 80 for each, a multiple of a tile's 16 rows. Where
# shares are no multiple (48 columns over 4 chips), XLA pads the sums that it scatters and permutes the shares after.
GROUP = 16


@dataclass(frozen=True)
class Case:
    """A program: of a model, of one kind, for a slice, with the state whole on each chip ("data") or divided ("fsdp").

    Inference keeps the parameters whole, so it has no "fsdp".
    """

    model: str
    kind: str  # encoder, decoder or step
    topology: str
    sharding: str = "data"

    @property
    def name(self) -> str:
        return " ".join(dataclasses.astuple(self))

    @property
    def images(self) -> int:
        """Images on a chip."""
        if self.kind != "step":
            return IMAGES if self.kind == "encoder" else 1
        return max(BATCH[self.model] // CHIPS[self.topology], 1) if self.topology != "v5e:2x2" else 1

    @property
    def group(self) -> int:
        """Chips that hold a state together."""
        return min(GROUP, CHIPS[self.topology]) if self.sharding == "fsdp" else 1

    @property
    def collectives(self) -> set[str]:
        """Kinds that are expected: none at inference, sums of gradients, and parameters gathered where divided."""
        if self.kind != "step":
            return set()
        return {"all-reduce"} if self.sharding == "data" else {"all-reduce", "reduce-scatter", "all-gather"}


def cases() -> list[Case]:
    """All of them, in the order of their worth when time is short."""
    small = [Case("vit_b", kind, "v5e:2x2") for kind in ("encoder", "decoder", "step")]
    small.append(Case("vit_b", "step", "v5e:2x2", "fsdp"))
    large = [Case("vit_h", "step", "v6e:8x8", "fsdp"), Case("vit_h", "encoder", "v5e:2x2"),
             Case("vit_h", "step", "v5e:16x16", "fsdp"), Case("vit_h", "step", "v5e:16x16"),
             Case("vit_h", "step", "v6e:8x8"), Case("vit_h", "decoder", "v5e:2x2")]
    first = small + large
    every = [Case(model, kind, topology, sharding) for topology in CHIPS for model in BATCH
             for kind in ("encoder", "decoder", "step") for sharding in ("data", "fsdp")
             if kind == "step" or sharding == "data"]
    return first + [case for case in every if case not in first]


def environment() -> dict:
    """What libtpu needs to describe chips that are not there, in several processes; set before it is loaded."""
    return {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def topology_devices(topology: str) -> list:
    """The described chips of a slice such as v5e:2x2. Needs `environment` and libtpu."""
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def config_of(case: Case):
    from samjax import config

    model = {"vit_b": config.VIT_B, "vit_h": config.VIT_H}[case.model]
    encoder = replace(model.encoder, scan=True, remat=case.kind == "step")
    return replace(model, encoder=encoder, dtype="bfloat16", decode_chunk=OBJECTS if case.kind == "step" else POINTS)


def recipe_of(case: Case):
    from samjax.train.recipe import preset

    return replace(preset(case.model), accumulate=case.images)


def program_of(case: Case, devices: list, config=None, recipe=None):
    """(the jitted function, its arguments as ShapeDtypeStructs with shardings, shapes of the parameters).

    config and recipe: others than those of the case, for a smaller test.
    """
    config, recipe = config or config_of(case), recipe or recipe_of(case)
    return (step_program if case.kind == "step" else inference_program)(case, devices, config, recipe)


def parameter_shapes(config):
    import jax

    from samjax.model.sam import init

    return jax.eval_shape(partial(init, config), jax.random.key(0))


def sent_shapes(config, params, group: int = 1) -> list[tuple]:
    """Shapes that a step may send: the parameters', the gradients of position tables before they are folded, and where
    groups of chips divide parameters, a chip's share, which groups add up among each other."""
    vit, (h, w) = config.encoder, config.grid
    whole = [leaf.shape for leaf in _leaves(params)] + [(n, n, vit.width // vit.heads) for n in {vit.window, h, w}]
    return whole + (_shares(params, group) if group > 1 else [])


def _shares(params, group: int) -> list[tuple]:
    from jax.sharding import PartitionSpec

    from samjax.sharding import RULES, specs

    is_spec = lambda x: isinstance(x, PartitionSpec)
    pairs = zip(_leaves(params), _leaves(specs(params, RULES, group), is_leaf=is_spec), strict=True)
    return [tuple(side // group if axis else side for side, axis in zip(leaf.shape, spec)) for leaf, spec in pairs]


def _leaves(tree, is_leaf=None) -> list:
    import jax

    return jax.tree.leaves(tree, is_leaf)


def inference_program(case: Case, devices: list, config, _):
    """The library's own: `spread_encoder`, and `decode_points` spread as `samjax.lockstep` does it."""
    import jax
    import jax.numpy as jnp

    from samjax.lockstep import decode_points
    from samjax.parallel import mesh_map
    from samjax.predict import spread_encoder

    params, b = parameter_shapes(config), len(devices) * case.images
    if case.kind == "encoder":
        run = spread_encoder(config, tuple(devices))
        batch = (_array((b, *config.image_size, 3), jnp.uint8), _array((b, 2), jnp.int32))
        branches = ("image_encoder",)
    else:
        run = mesh_map(lambda params, batch: decode_points(config, params, batch[0], batch[1][0]), devices)
        batch = (_array((b, *config.grid, config.channels)), _array((len(devices), POINTS, 2)))
        branches = ("prompt_encoder", "mask_decoder")
    params = {branch: params[branch] for branch in branches}
    rows = jax.tree.map(lambda _: run._rows, batch)
    return run.program, (_placed(params, jax.tree.map(lambda _: run._everywhere, params)), _placed(batch, rows)), params


def step_program(case: Case, devices: list, config, recipe):
    """`samjax.train`'s step over a mesh, as `samjax.parallel.mesh_step` runs it."""
    import jax
    import jax.numpy as jnp

    from samjax.parallel import mesh_step
    from samjax.sharding import RULES, make_mesh
    from samjax.train.step import init_state, make_step, training_config

    rules = RULES if case.sharding == "fsdp" else None
    run = mesh_step(make_step(config, recipe), make_mesh(case.group, devices), rules)
    params = parameter_shapes(training_config(config, recipe))
    state = jax.eval_shape(lambda params: init_state(config, recipe, params, jax.random.key(0)), params)
    b, n = len(devices) * case.images, recipe.objects
    batch = {"image": _array((b, *config.image_size, 3), jnp.uint8), "size": _array((b, 2), jnp.int32),
             "masks": _array((b, n, *config.mask_size), jnp.bool_), "valid": _array((b, n), jnp.bool_)}
    rows = jax.tree.map(lambda _: run._rows, batch)
    state = _placed(state, run.shardings(state))
    return run.program(state), (state, _placed(batch, rows)), params


def _array(shape: tuple, dtype="float32"):
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(tree, shardings):
    import jax

    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
