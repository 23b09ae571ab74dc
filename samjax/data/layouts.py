"""`open_source`: which layout a path has."""

import glob
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from samjax.data.coco import Coco, is_coco
from samjax.data.folder import from_folders, from_meta
from samjax.data.labels import KINDS
from samjax.data.sa1b import PICTURES, Sa1bFolder, Sa1bTar
from samjax.data.sources import SPLITS, Joined, NoSplit, Source, pick_split
from samjax.errors import InputError

LAYOUTS = ("images/ and masks/ (PNG of instance ids or classes), a COCO or LVIS .json with its pictures, SA-1B's "
           "sa_*.jpg with sa_*.json or its .tar files, or a meta.json that lists items")


def open_source(path, split: str | None = None, *, images=None, masks: str = "auto", by_hash: bool = True) -> Source:
    """The pictures and masks at `path`, whatever the layout:

    - SA-1B: a .tar shard, a pattern of them, a folder of them, or a folder of sa_*.jpg and sa_*.json;
    - COCO or LVIS: the .json (images: the folder of its pictures, else looked for nearby), or a folder with
      annotations/*.json or with _annotations.coco.json, in itself or in train/ and valid/;
    - images/ and masks/, files matched by name (x.jpg with x.png, x_mask.png, x_0.png and x_1.png, or x/*.png);
      masks: "instances" (each id is an object), "classes" (each 8-connected part of each class is), or "auto"
      (instances in 16-bit pictures, classes in 8-bit ones, where 255 may be void: `samjax.data.labels.is_void`);
    - a meta.json whose "items" have "image", "mask" (a path or several) and "split", and maybe a "coco_json".

    split: "train", "val" or "test", as meta.json, the names of folders (train/, val/, valid/) or of annotation files
    say; where nothing says so, "val" is a fifth of the pictures, by a hash of their names, or with by_hash=False there
    is no such split. None: all of them.

    Several paths make one source. Raises InputError: nothing there, no known layout; and its kind
    `samjax.data.sources.NoSplit`: no such split.
    """
    if masks not in KINDS:
        raise InputError(f"masks {masks!r} is none of {', '.join(KINDS)}")
    if not isinstance(path, (str, os.PathLike)):
        paths = [os.path.normpath(os.fspath(one)) for one in path]
        sources = [open_source(one, split, images=images, masks=masks, by_hash=by_hash) for one in paths]
        return _several(sources, prefixes=_prefixes(paths))
    name = os.fspath(path)
    if glob.has_magic(name) and not os.path.exists(name):
        return _matches(name, split, dict(images=images, masks=masks), by_hash)
    path, pick = Path(name), partial(pick_split, by_hash=by_hash)
    if path.is_dir():
        return _directory(path, split, images, masks, pick)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return pick(_file(path, images), split)


def _matches(pattern: str, split: str | None, how: dict, by_hash: bool) -> Source:
    """All that a pattern matches. What names splits, itself or in its file's name, is taken at its word; the pictures
    of all the others are split together."""
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise InputError(f"{pattern}: no file has such a name")
    if split is None:
        return _several([open_source(path, **how) for path in paths], pattern)
    named, silent, known = [], [], set()
    for path in paths:
        said = _split_in(Path(path).stem) if path.endswith(".json") else None
        try:
            if said in (None, split):
                named.append(open_source(path, split if said is None else None, **how, by_hash=False))
            known.add(said or split)
        except NoSplit as error:
            known |= set(error.known)
            if not error.known:
                silent.append(open_source(path, **how))
    if silent:
        named.append(pick_split(_several(silent, pattern), split, by_hash=by_hash))
    if not named:
        raise NoSplit(f"{pattern} has no split {split!r}: its splits are {', '.join(sorted(known))}", sorted(known))
    return _several(named, pattern)


def _several(sources: Sequence[Source], name: str = "", prefixes: Sequence[str] | None = None) -> Source:
    if not sources:
        raise InputError("no data were given")
    return sources[0] if len(sources) == 1 else Joined(sources, name, prefixes)


def _prefixes(paths: Sequence[str]) -> list[str]:
    """Short names of paths, all different."""
    short = [os.path.basename(path) for path in paths]
    return [f"{name}/" if short.count(name) == 1 else f"{path}/" for name, path in zip(short, paths)]


def _file(path: Path, images) -> Source:
    if path.suffix.lower() == ".json":
        if not is_coco(path):
            raise InputError(f"{path} is not a COCO file ('images' and 'annotations'): for SA-1B or a meta.json give "
                             "the folder")
        return Coco(path, images)
    if path.suffix.lower() == ".tar":
        return Sa1bTar(path)
    if path.suffixes[-2:-1] == [".tar"] or path.suffix.lower() in (".tgz", ".zip"):
        raise InputError(f"{path} is compressed, so nothing in it can be reached at once: unpack it")
    raise InputError(f"{path} is no data set: give a folder, a .json or a .tar")


def _directory(path: Path, split: str | None, images, masks: str, pick: Callable = pick_split) -> Source:
    if (path / "meta.json").is_file():
        source, splits = from_meta(path, masks)
        return pick(source, split, lambda i: splits[i])
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if tars := [name for name in names if name.endswith(".tar")]:
        return pick(_several([Sa1bTar(path / name) for name in tars], os.fspath(path)), split)
    if jsons := _coco_files(path):
        return _coco(path, jsons, split, images, pick)
    if found := from_folders(path, masks):
        source, splits = found
        return pick(source, split, lambda i: splits[i])
    source = Sa1bFolder(path)
    if len(source):
        return pick(source, split)
    parts = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS and (path / name).is_dir()}
    if parts:
        return _parts(path, parts, split, images, masks)
    seen = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
    raise InputError(f"{path} has no layout that is known: it holds {seen}; known are {LAYOUTS}")


def _coco_files(path: Path) -> list[tuple[Path, str | None]]:
    """(file, split) of the COCO files in a folder, in annotations/ or in train/, valid/ and so on."""
    places = [(path, None), (path / "annotations", None)]
    places += [(path / name, SPLITS[name.lower()]) for name in sorted(os.listdir(path)) if name.lower() in SPLITS]
    found = []
    for place, split in places:
        files = sorted(file for file in place.glob("*.json")
                       if not file.name.startswith(("captions", "person_keypoints")))
        if len(files) > 16 or any(file.with_suffix(kind).exists() for file in files for kind in PICTURES):
            continue  # SA-1B has one for each picture
        found += [(file, split or _split_in(file.stem)) for file in files if is_coco(file)]
    return found


def _split_in(stem: str) -> str | None:
    words = "".join(c if c.isalpha() else " " for c in stem.lower()).split()
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _coco(path: Path, files: list[tuple[Path, str | None]], split: str | None, images, pick: Callable) -> Source:
    known = {found for _, found in files if found}
    if split is not None and known:
        if split not in known:
            raise NoSplit(f"{path} has no split {split!r}: its splits are {', '.join(sorted(known))}", sorted(known))
        files, split = [(file, found) for file, found in files if found == split], None
    folders = {file.parent for file, _ in files}
    prefixes = [f"{file.parent.name}/" if len(folders) > 1 else "" for file, _ in files]
    return pick(_several([Coco(file, images) for file, _ in files], os.fspath(path), prefixes), split)


def _parts(path: Path, parts: dict[str, str], split: str | None, images, masks: str) -> Source:
    """train/ and val/, each with a layout of its own."""
    if split is not None and split not in parts.values():
        known = sorted(set(parts.values()))
        raise NoSplit(f"{path} has no split {split!r}: its splits are {', '.join(known)}", known)
    parts = [name for name, found in parts.items() if split in (None, found)]
    return _several([_directory(path / name, None, images, masks) for name in parts], os.fspath(path),
                    [f"{name}/" for name in parts])
