"""A whole model read from, or written to, any of the file formats; always strict."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from convert import int8 as packed
from convert.recognise import recognise
from convert.safetensors import read_safetensors, write_safetensors
from convert.table import KINDS, Row, extras, rows
from convert.tensor import Tensor
from convert.torch_file import read_torch, write_torch
from samjax.config import SamConfig, TinyViT
from samjax.errors import InputError

NAMINGS = ("official", "transformers")
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Model:
    """A model whose data are read on demand.

    Attributes:
        config: what it is; `fold_batch_norm` and `scan` are False: files hold the unfolded, unstacked form.
        tensors: path ("image_encoder/blocks_0/norm1/scale") -> float32 Tensor, laid out as the Flax model wants it.
        extras: official name -> Tensor: what the file holds beside the model (TinyViT's classifier, counters).
        int8: whether the file holds int8 weights; `tensors` are the float32 ones that they stand for.
    """

    config: SamConfig
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    int8: bool = False

    def params(self) -> dict:
        """The parameter tree with its data: nested dicts of float32 NumPy arrays."""
        return nest({path: tensor.load() for path, tensor in self.tensors.items()})


def nest(flat: Mapping) -> dict:
    """path -> leaf to nested dicts: the inverse of `flatten`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flatten(params: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dicts of arrays -> path -> array."""
    flat = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        flat.update(flatten(value, path + "/") if isinstance(value, Mapping) else {path: value})
    return flat


def read(path) -> Model:
    """Reads a `.pth`/`.pt`, a `.safetensors` or an Orbax directory written by samjax.

    Names and shapes are compared with the model's before any data is touched. Data are checked as they are loaded.
    Raises InputError that names every missing, extra or misshaped tensor.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    tensors = dict(read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_torch(path))
    config, naming = recognise(tensors, path)
    config = stored_form(config)
    if naming == "transformers":
        tensors.pop("prompt_encoder.shared_embedding.positional_embedding", None)  # the same matrix, tied
    expected = {getattr(row, naming): row for row in rows(config)}
    beside = {extra.official: extra.shape for extra in extras(config) if extra.official in tensors}
    scales = packed.scales(expected, tensors, torch=True)
    _compare(path, {name: row.torch_shape for name, row in expected.items()} | beside, tensors, beside, scales)
    kept = {name: tensors[name] for name in beside}
    checked = {row.path: _checked(tensors[name], name, path, row, tensors[name + packed.SUFFIX] if name in scales
                                  else None) for name, row in expected.items()}
    return Model(config, checked, kept, bool(scales))


def write(path, model: Model, naming: str = "official", int8: bool = False) -> None:
    """Writes a `.pth`/`.pt`, a `.safetensors` (in either naming) or, for any other name, an Orbax directory.

    int8: large weights as int8 with their scales (`convert.int8`), in `.safetensors` and directories; otherwise
    everything is float32, also of a model that was read from int8.
    """
    path = Path(path)
    if int8 and (path.suffix.lower() in (".pth", ".pt") or naming != "official"):
        raise InputError(f"{path}: int8 weights go into a .safetensors with the official naming or a directory; "
                         "without int8 any file gets the float32 values that they stand for")
    if naming not in NAMINGS:
        raise InputError(f"naming {naming!r} is none of {', '.join(NAMINGS)}")
    suffix = path.suffix.lower()
    if suffix not in (".pth", ".pt", ".safetensors"):
        if naming != "official":
            raise InputError(f"{path}: the {naming} naming exists in .safetensors and .pth files only")
        return _write_directory(path, model, int8)
    tensors = {_name(row, naming, model.config): _to_torch(row, model.tensors[row.path])
               for row in rows(model.config)}
    if int8:
        tensors = dict(part for row in rows(model.config)
                       for part in packed.split(row.official, model.tensors[row.path], row, torch=True))
    if naming == "official":
        tensors |= _extras_or_zeros(model)
    if suffix == ".safetensors":
        write_safetensors(path, tensors, {"format": "pt"})
    else:
        write_torch(path, tensors)


def stored_form(config: SamConfig) -> SamConfig:
    """The config of the form that files hold: BatchNorm unfolded, blocks unstacked."""
    switch = "scan" if hasattr(config.encoder, "scan") else "fold_batch_norm"
    return replace(config, encoder=replace(config.encoder, **{switch: False}))


def _compare(path: Path, expected: Mapping[str, tuple], tensors: Mapping[str, Tensor], any_type=(),
             scales: Mapping[str, tuple] | None = None) -> None:
    """Raises InputError naming everything that differs.

    Those of `any_type` may hold integers; those of `scales` hold int8, and their scales of such shapes must be there.
    """
    scales = scales or {}
    expected, any_type = dict(expected), {*any_type, *scales}
    expected |= {name + packed.SUFFIX: shape for name, shape in scales.items()}
    faults = [f"missing {name} {shape}" for name, shape in expected.items() if name not in tensors]
    faults += [f"unknown {name} {tensor.shape}" for name, tensor in tensors.items() if name not in expected]
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            faults.append(f"{name} is {tensors[name].shape} where the model has {shape}")
        if name in tensors and name not in any_type and tensors[name].dtype.name not in FLOATS:
            faults.append(f"{name} holds {tensors[name].dtype.name}, not floating point numbers")
    if faults:
        raise InputError(f"{path}: does not fit the model it resembles: {'; '.join(faults)}")


def _checked(tensor: Tensor, name: str, path: Path, row: Row | None = None, scale: Tensor | None = None) -> Tensor:
    """The tensor in float32, refused where it is not finite; laid out for JAX if a row of the table is given."""
    lay = KINDS[row.kind].to_jax if row else lambda x: x

    def load() -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            data = lay(tensor.load() if scale else tensor.load().astype(np.float32, copy=False))
            if scale:
                data = packed.decode(data, lay(scale.load().astype(np.float32, copy=False)))
        if not np.isfinite(data).all():
            raise InputError(f"{path}: {name} holds NaN or infinity; the file is damaged or its training diverged")
        return np.ascontiguousarray(data)

    return Tensor(row.shape if row else tensor.shape, np.dtype(np.float32), load)


def _to_torch(row: Row, tensor: Tensor) -> Tensor:
    def load() -> np.ndarray:
        return np.ascontiguousarray(KINDS[row.kind].to_torch(tensor.load()))

    return Tensor(row.torch_shape, np.dtype(np.float32), load)


def _name(row: Row, naming: str, config: SamConfig) -> str:
    name = getattr(row, naming)
    if name is None:
        raise InputError(f"transformers has no model like {config.name}; use the official naming")
    return name


def _extras_or_zeros(model: Model) -> dict[str, Tensor]:
    """What the official code's strict loading asks for; zeros where the model came without it."""
    found = {}
    for extra in extras(model.config):
        if extra.official in model.extras:
            found[extra.official] = model.extras[extra.official]
        elif extra.shape == () or model.config.encoder.patch_stride == 4:  # LiteMedSAM's files have no classifier
            found[extra.official] = Tensor.of(np.zeros(extra.shape, extra.dtype))
    return found


def _read_directory(path: Path) -> Model:
    from samjax import checkpoint  # the only importer of Orbax, which takes a second to import

    config, params, kept = checkpoint.load_model(path)
    config, tensors = stored_form(config), {name: Tensor.of(array) for name, array in flatten(params).items()}
    try:
        if _blocks(config) > len(tensors):
            raise ValueError(f"it lists {_blocks(config)} blocks")
        expected = {row.path: row for row in rows(config)}
    except (ArithmeticError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: its config describes no model ({error})") from None
    scales = packed.scales(expected, tensors, torch=False)
    _compare(path, {name: row.shape for name, row in expected.items()}, tensors, scales=scales)
    checked = {name: _checked(tensors[name], name, path,
                              scale=tensors[name + packed.SUFFIX] if name in scales else None) for name in expected}
    return Model(config, checked, kept, bool(scales))


def _blocks(config: SamConfig) -> int:
    depths = config.encoder.depths if isinstance(config.encoder, TinyViT) else (config.encoder.depth,)
    return sum(depths) + config.decoder.depth + config.decoder.masks


def _write_directory(path: Path, model: Model, int8: bool) -> None:
    from samjax import checkpoint

    tensors = model.tensors
    if int8:
        tensors = dict(part for row in rows(model.config)
                       for part in packed.split(row.path, tensors[row.path], row, torch=False))
    checkpoint.save_model(path, model.config, nest(tensors), model.extras)


def size_of(path) -> int:
    """Bytes of a file, or of all files of a directory."""
    path = Path(path)
    return os.path.getsize(path) if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


__all__ = ["Model", "NAMINGS", "flatten", "json", "read", "size_of", "stored_form", "write"]
