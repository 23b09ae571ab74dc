"""Models and training states on disk: the only importer of Orbax."""

import contextlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from samjax.config import SamConfig, from_dict, to_dict
from samjax.errors import InputError

PORTION = 64 << 20
CONFIG, PARAMS, EXTRAS = "samjax.json", "params", "extras.safetensors"


def save_model(path, config: SamConfig, params: Mapping, extras: Mapping) -> None:
    """Writes a directory with `samjax.json` (the config), `params` (Orbax) and `extras.safetensors`.

    The leaves of `params` are arrays, or `convert.tensor.Tensor`s, of which PORTION bytes at a time are in memory.
    It is written under a temporary name and renamed: an interrupted save leaves nothing behind. A directory that
    samjax wrote before is replaced; any other existing path is refused.
    """
    from convert.safetensors import write_safetensors

    path = Path(os.path.abspath(path))
    if path.exists() and not (path / CONFIG).exists():
        raise InputError(f"{path}: exists and is not a samjax model; choose another name or remove it")
    try:
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    try:
        with _quiet(), _checkpointer() as checkpointer:
            checkpointer.save(temporary / PARAMS, _as_tensors(params))
        if extras:
            write_safetensors(temporary / EXTRAS, extras)
        (temporary / CONFIG).write_text(json.dumps({"format": 1, "config": to_dict(config)}, indent=1))
        _replace(temporary, path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); is the disk full?") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, path: Path) -> None:
    """Renames a directory, over another one if need be, which is gone only when the new one is in place."""
    old = temporary.with_name(temporary.name + ".old")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_model(path) -> tuple[SamConfig, dict, dict]:
    """(config, params as nested dicts of NumPy arrays, extras) of a directory that `save_model` wrote."""
    from convert.safetensors import read_safetensors

    path = Path(os.path.abspath(path))
    try:
        values = json.loads((path / CONFIG).read_text())
        config = from_dict(values["config"])
    except FileNotFoundError:
        raise InputError(f"{path}: is not a samjax model: it has no {CONFIG}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its {CONFIG} cannot be used: {str(error).splitlines()[0]}") from None
    try:
        with _quiet(), _checkpointer() as checkpointer:
            params = checkpointer.restore(path / PARAMS)
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged directory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: its parameters cannot be read: {reason[:200]}") from None
    extras = read_safetensors(path / EXTRAS) if (path / EXTRAS).exists() else {}
    return config, params, extras


def _as_tensors(tree: Mapping) -> dict:
    from convert.tensor import Tensor

    if isinstance(tree, Mapping):
        return {name: _as_tensors(value) for name, value in tree.items()}
    return tree if isinstance(tree, Tensor) else Tensor.of(tree)


def _checkpointer():
    import asyncio

    import numpy as np
    import orbax.checkpoint as ocp
    from orbax.checkpoint import type_handlers

    from convert.tensor import Tensor

    class Portions(type_handlers.NumpyHandler):
        """Loads and writes PORTION bytes at a time; Orbax alone would hold two copies of everything."""

        async def serialize(self, values, infos, args=None):
            ends = np.cumsum([value.nbytes for value in values]) // PORTION
            for portion in np.unique(ends):
                chosen = np.flatnonzero(ends == portion)
                pick = lambda items, chosen=chosen: items and [items[i] for i in chosen]
                arrays = [value.load() for value in pick(values)]
                for future in await super().serialize(arrays, pick(infos), pick(args)):
                    await asyncio.to_thread(future.result)
            return []

        # In turn: what a failure leaves under way would complain on stderr.
        async def metadata(self, infos):
            return [found for info in infos for found in await super(Portions, self).metadata([info])]

        async def deserialize(self, infos, args=None):
            return [found for info, arg in zip(infos, args or infos)
                    for found in await super(Portions, self).deserialize([info], args and [arg])]

    class NumpyTree(ocp.PyTreeCheckpointHandler):
        """Saves `Tensor`s, and restores plain NumPy arrays wherever it runs: a model file belongs to no device."""

        def __init__(self):
            handler = Portions(deepcopy_host_arrays=False)
            registry = type_handlers.create_type_handler_registry((Tensor, handler), (np.ndarray, handler))
            super().__init__(type_handler_registry=registry)

        def restore(self, directory, **kwargs):
            import jax

            tree = self.metadata(directory).tree
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return super().restore(directory, args=ocp.args.PyTreeRestore(restore_args=args))

    return ocp.Checkpointer(NumpyTree())


@contextlib.contextmanager
def _quiet():
    """Orbax reports on the root logger's level; a command's output belongs to its user."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
