"""Where parameters lie when they are divided among devices (fully sharded data parallelism): rules written by hand.

A rule names a dimension of the parameter, counted from the end (so that it also holds for a ViT's stacked blocks), or
None where every device keeps all of it: what is small, and the whole decoder (4 million parameters). Optimizer states
that mirror parameters follow the parameters' rules, since the ends of their paths are the same.

Matrices are divided along their outputs. A rule that takes whatever dimension is largest makes compilers permute and
gather activations; with these they gather weights only, which is the point (tests/test_parallel.py counts it).
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from samjax.errors import InputError

DATA, FSDP = "data", "fsdp"  # the mesh's axes: pictures are divided over both, parameters over the second
ROOTS = ("image_encoder", "prompt_encoder", "mask_decoder")

Rules = Sequence[tuple[str, int | None]]
RULES: Rules = tuple((f"^{pattern}(/values|/scale)?$", dimension) for pattern, dimension in (
    # Both encoders.
    (r"image_encoder/.*/(norm\w*)/(scale|bias)", None),
    (r"image_encoder/.*/(qkv|proj|mlp_in|mlp_out)/kernel", -1),
    (r"image_encoder/.*/(qkv|proj|mlp_in|mlp_out)/bias", None),
    (r"image_encoder/.*mlp_norm/(scale|bias)", None),
    (r"image_encoder/neck/conv[12]/kernel", -1),
    # ViT.
    (r"image_encoder/pos_embed", -1),
    (r"image_encoder/patch_embed/kernel", -1),
    (r"image_encoder/patch_embed/bias", None),
    (r"image_encoder/.*/rel_pos_[hw]", None),
    # TinyViT: its convolutions with their BatchNorm folded in or not, and the bias of its attention.
    (r"image_encoder/patch_embed_[01]/kernel", None),
    (r"image_encoder/stages_\d_(blocks_\d+|downsample)/conv[13]/kernel", -1),
    (r"image_encoder/stages_\d_(blocks_\d+|downsample)/conv2/kernel", None),  # depthwise
    (r"image_encoder/stages_\d_blocks_\d+/local_conv/kernel", None),
    (r"image_encoder/.*(conv[123]|local_conv|patch_embed_[01])/(bias|norm_(scale|bias|mean|var))", None),
    (r"image_encoder/stages_\d_blocks_\d+/attn/bias", None),
    # What is small: low-rank factors of any layer, and all that is not the encoder.
    (r"image_encoder/.*/lora_[ab]", None),
    (r"prompt_encoder/.*", None),
    (r"mask_decoder/.*", None),
))


def make_mesh(fsdp: int = 1, devices: Sequence | None = None) -> Mesh:
    """A mesh of all devices (of all processes), or of those given: axes "data" and "fsdp", the second of that size.

    fsdp 1 is plain data parallelism; the number of devices is fully sharded; between, groups of `fsdp` devices hold
    the parameters together, and the groups are data-parallel. Where slices of TPUs, or GPUs linked directly, divide
    into such groups, each lies within one. Raises InputError for groups that do not come out even.
    """
    devices = list(devices if devices is not None else jax.devices())
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"{len(devices)} devices cannot form groups of {fsdp}: give a divisor")
    auto = jax.sharding.AxisType.Auto  # the default, Explicit, refuses ordinary matrix products
    return Mesh(arranged(devices, fsdp), (DATA, FSDP), axis_types=(auto, auto))


def arranged(devices: Sequence, fsdp: int = 1) -> np.ndarray:
    """Devices (n / fsdp, fsdp), the members of a row near to each other.

    In place of `jax.make_mesh`, which refuses several slices, and groups that are no whole axis of a slice (16 chips of
    8 x 8).
    """
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    parts = [slices[index] for index in sorted(slices)]
    width = fsdp if all(len(part) % fsdp == 0 for part in parts) else 1  # 1: groups lie across slices
    grids = [mesh_utils.create_device_mesh((len(part) // width, width), part, allow_split_physical_axes=True)
             for part in parts]
    return np.concatenate(grids).reshape(-1, fsdp)


def rule_of(path: str, rules: Rules = RULES) -> int | None:
    """The dimension that the first matching rule names for a parameter, by its path such as image_encoder/pos_embed.

    Raises InputError if there is no rule.
    """
    for pattern, dimension in rules:
        if re.search(pattern, path):
            return dimension
    raise InputError(f"no sharding rule for the parameter {path}: add one to the rules")


def specs(tree, rules: Rules | None, size: int):
    """A PartitionSpec for each array of a tree of parameters, or of a training state that holds some.

    rules: None keeps everything on every device. What lies below none of the three branches of the parameters (step
    counters, keys, schedules) is on every device too, and so is a dimension that `size` devices cannot share evenly.
    """
    def spec(path, leaf) -> PartitionSpec:
        name = _parameter(path)
        dimension = rule_of(name, rules) if rules is not None and name else None
        shape = jax.numpy.shape(leaf)
        if dimension is None or -dimension > len(shape) or shape[dimension] % size:
            return PartitionSpec()
        return PartitionSpec(*(FSDP if i == dimension else None for i in range(-len(shape), 0)))

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree, mesh: Mesh, rules: Rules | None):
    """`specs` as NamedShardings of a mesh from `make_mesh`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, rules, mesh.shape[FSDP]),
                        is_leaf=lambda x: isinstance(x, PartitionSpec))


def key_name(key) -> str:
    """One step of a pytree path as text, whether it is a dict's key, a field's name or a place in a list."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _parameter(path) -> str | None:
    """The part of a pytree path that names a parameter: what begins with one of the branches."""
    names = [key_name(key) for key in path]
    start = next((i for i, name in enumerate(names) if name in ROOTS), None)
    return None if start is None else "/".join(names[start:])
