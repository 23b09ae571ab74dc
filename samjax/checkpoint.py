"""Models and training states on disk: the only importer of Orbax."""

import contextlib
import inspect
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from samjax.config import SamConfig, from_dict, to_dict
from samjax.errors import InputError
from samjax.quiet import quiet

PORTION = 64 << 20
ORBAX = "absl"  # the logger it reports to
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
        with quiet(ORBAX), _checkpointer() as checkpointer:
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
        with quiet(ORBAX), _checkpointer() as checkpointer:
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

    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from orbax.checkpoint import type_handlers

    from convert.tensor import Tensor

    # A file is this process's own business, whether or not others run beside it: Orbax would wait for all of them.
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own},
                                               barrier_sync_key_prefix=f"process_{own}")

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
            known = inspect.signature(type_handlers.NumpyHandler.__init__).parameters  # not to Orbax 0.11
            handler = Portions(**{name: False for name in ("deepcopy_host_arrays",) if name in known})
            registry = type_handlers.create_type_handler_registry((Tensor, handler), (np.ndarray, handler))
            super().__init__(type_handler_registry=registry, multiprocessing_options=alone)

        def restore(self, directory, **kwargs):
            tree = self.metadata(directory).tree
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return super().restore(directory, args=ocp.args.PyTreeRestore(restore_args=args))

    return ocp.Checkpointer(NumpyTree(), multiprocessing_options=alone)


class Checkpoints:
    """Training states in a folder, one directory a step; a context.

        with Checkpoints(folder, keep=3) as saved:
            found = saved.restore(state)        # None, or the newest that is whole
            saved.save(step, state, position, meta, score)

    Kept are the newest `keep` and the one of the best score. Writing goes on while the next steps run; each is renamed
    into place when it is whole, and only then are old ones removed. report(message) is told of what went wrong with
    some and could be got over.
    """

    def __init__(self, folder, keep: int = 3, report: Callable[[str], None] | None = None):
        self.folder, self.keep = Path(os.path.abspath(folder)), keep
        self.report = report or (lambda message: None)
        self._manager = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self._manager is None:
            return
        try:
            with quiet(ORBAX):
                self._manager.close()
        except Exception as error:
            if kind is None:  # what is under way already matters more
                raise self._unwritable(error) from None

    def save(self, step: int, state, position: dict, meta: dict, score: float | None = None) -> None:
        """Saves a state (a pytree of a device's arrays, or of host arrays that do not change any more), and two dicts
        that JSON can hold. position: of the data's iterator. score: the higher the better.

        Raises InputError if it, or the one before, could not be written; what was there before stays.
        """
        import orbax.checkpoint as ocp

        nested = _nested(state)
        meta = {"meta": meta, "crc32": _crc32(nested)}
        parts = ocp.args.Composite(state=ocp.args.PyTreeSave(nested), position=ocp.args.JsonSave(position),
                                   meta=ocp.args.JsonSave(meta))
        try:
            with quiet(ORBAX):
                manager = self._open()
                manager.wait_until_finished()
                manager.save(step, args=parts, metrics=None if score is None else {"score": float(score)}, force=True)
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types
            raise self._unwritable(error) from None

    def wait(self) -> None:
        """Until all is on the disk. Raises as `save` does."""
        try:
            with quiet(ORBAX):
                self._open().wait_until_finished()
        except Exception as error:
            raise self._unwritable(error) from None

    def restore(self, like) -> "tuple[object, dict, dict] | None":
        """(state, position, meta) of the newest checkpoint that can be read, or None where there is none.

        like: a state of the same structure and shapes. Arrays that lie on several processes come back as `like` lies;
        all others as NumPy. A checkpoint that is damaged is put aside under another name, and the report says so.
        Raises InputError for a checkpoint of something else, or if all are damaged.
        """
        with quiet(ORBAX):
            steps = sorted(self._open().all_steps(), reverse=True)
        for i, step in enumerate(steps):
            found = error = None
            try:
                with quiet(ORBAX):
                    found = self._read(step, like)
            except Exception as problem:
                error = problem
            if not _anywhere(error is not None):
                return _filled(like, found[0], self.folder / str(step)), *found[1:]
            reason = (str(error).splitlines() or [type(error).__name__])[0][:150] if error else "for another process"
            if i + 1 == len(steps):
                raise InputError(f"{self.folder / str(step)}: is damaged ({reason}), and no older checkpoint is left: "
                                 "start again") from None
            self.report(f"the checkpoint of step {step} is damaged ({reason}); going back to step {steps[i + 1]}")
            self._put_aside(step)
        return None

    def _read(self, step: int, like):
        import jax
        import orbax.checkpoint as ocp

        def arguments(leaf):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)
            return ocp.RestoreArgs(restore_type=_np().ndarray)

        saved = self._open().item_metadata(step)["state"]
        if saved is None:
            raise ValueError("its state is missing")
        wanted = dict(_leaves(_nested(like)))
        plain = ocp.RestoreArgs(restore_type=_np().ndarray)
        tree = saved.tree if hasattr(saved, "tree") else saved
        args = _mapped(tree, lambda path: arguments(wanted[path]) if path in wanted else plain)
        found = self._open().restore(step, args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(restore_args=args), position=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore()))
        sums = found["meta"]["crc32"], _crc32(found["state"])  # none of what several processes hold, then or now
        if None not in sums and sums[0] != sums[1]:
            raise ValueError("its numbers are not those that were saved")
        return found["state"], found["position"], found["meta"]["meta"]

    def _put_aside(self, step: int) -> None:
        import jax

        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                (self.folder / str(step)).rename(self.folder / f"damaged-{step}-{uuid.uuid4().hex[:6]}")
        _anywhere(False)  # until it is done
        with quiet(ORBAX):
            self._open().reload()

    def _open(self):
        if self._manager is None:
            import orbax.checkpoint as ocp

            policies = ocp.checkpoint_managers
            score = lambda metrics: metrics["score"]
            kept = policies.AnyPreservationPolicy([
                policies.LatestN(self.keep),
                policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)])
            options = ocp.CheckpointManagerOptions(best_fn=score, preservation_policy=kept,
                                                   cleanup_tmp_directories=True, enable_async_checkpointing=True)
            names = ("state", "position", "meta")
            handlers = dict(zip(names, (ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler(),
                                        ocp.JsonCheckpointHandler())))
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=names,
                                                      item_handlers=handlers)
            except OSError as error:
                raise self._unwritable(error) from None
        return self._manager

    def _unwritable(self, error: Exception) -> InputError:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return InputError(f"{self.folder}: a checkpoint cannot be written ({reason}); is the disk full? The one before "
                          "stays: make room, and the same command goes on from there")


def _anywhere(true: bool) -> bool:
    """Whether it is so in any of the processes, all of which ask."""
    import jax

    if jax.process_count() == 1:
        return true
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(_np().int32(true)).any())


def _crc32(nested: Mapping) -> int | None:
    """A checksum of host arrays; None if some are a device's."""
    sums = [zlib.crc32(_np().ascontiguousarray(leaf)) if isinstance(leaf, (_np().ndarray, _np().generic)) else None
            for _, leaf in sorted(_leaves(nested))]
    return None if None in sums else zlib.crc32(repr(sums).encode())


def _np():
    import numpy

    return numpy


def _path(path) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _nested(tree) -> dict:
    """Any pytree as nested dicts by names that last: fields, keys, places in tuples."""
    import jax

    nested: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, name = _path(path)
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested


def _leaves(nested: Mapping, prefix: tuple = ()):
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*prefix, str(name)))
        else:
            yield (*prefix, str(name)), value


def _mapped(nested: Mapping, function, prefix: tuple = ()):
    return {name: _mapped(value, function, (*prefix, str(name))) if isinstance(value, Mapping)
            else function((*prefix, str(name))) for name, value in nested.items()}


def _filled(like, nested: Mapping, place: Path):
    """`like` with the values of `nested`; InputError where names, shapes or types differ."""
    import jax

    found, used = dict(_leaves(nested)), set()

    def value(path, leaf):
        name = _path(path)
        used.add(name)
        got = found.get(name)
        if got is None or got.shape != leaf.shape or got.dtype != leaf.dtype:
            has = "nothing" if got is None else f"{got.dtype} {got.shape}"
            raise InputError(f"{place}: belongs to another run: of {'/'.join(name)} it has {has} where this one has "
                             f"{leaf.dtype} {leaf.shape}")
        return got

    state = jax.tree_util.tree_map_with_path(value, like)
    if extra := set(found) - used:
        raise InputError(f"{place}: belongs to another run: it has {'/'.join(sorted(extra)[0])} too")
    return state
