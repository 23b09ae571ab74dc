"""Models and training states on disk: the only importer of Orbax."""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from samjax.config import SamConfig, from_dict, to_dict
from samjax.errors import InputError

CONFIG, PARAMS, EXTRAS = "samjax.json", "params", "extras.safetensors"


def save_model(path, config: SamConfig, params: Mapping, extras: Mapping) -> None:
    """Writes a directory with `samjax.json` (the config), `params` (Orbax) and `extras.safetensors`.

    It is written under a temporary name and renamed: an interrupted save leaves nothing behind. A directory that
    samjax wrote before is replaced; any other existing path is refused.
    """
    from convert.safetensors import write_safetensors

    path = Path(os.path.abspath(path))
    if path.exists() and not (path / CONFIG).exists():
        raise InputError(f"{path}: exists and is not a samjax model; choose another name or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    try:
        with _quiet(), _checkpointer() as checkpointer:
            checkpointer.save(temporary / PARAMS, dict(params))
        if extras:
            write_safetensors(temporary / EXTRAS, extras)
        (temporary / CONFIG).write_text(json.dumps({"format": 1, "config": to_dict(config)}, indent=1))
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); is the disk full?") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _checkpointer():
    import numpy as np
    import orbax.checkpoint as ocp

    class NumpyHandler(ocp.PyTreeCheckpointHandler):
        """Restores plain NumPy arrays wherever it runs: a model file belongs to no device."""

        def restore(self, directory, **kwargs):
            tree = self.metadata(directory).tree
            args = ocp.checkpoint_utils.construct_restore_args(tree)
            import jax

            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), args)
            return super().restore(directory, args=ocp.args.PyTreeRestore(restore_args=args))

    return ocp.Checkpointer(NumpyHandler(save_concurrent_gb=1))


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
