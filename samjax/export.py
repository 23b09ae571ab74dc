"""A model as two programs, encoder and decoder, that run without samjax: serialised StableHLO (`jax.export`).

A folder holds the programs, their weights (NumPy's .npz), a manifest that says what goes in and comes out, and
`load.py`, which needs only JAX and NumPy. The weights are arguments of the programs: a program is a few hundred kB, can
be read without them, and serves another model of the same shape. How many pictures (b), objects (n) and slots (t) there
are is left open; each is settled when a program is called.
"""

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path

import jax
import jax.export
import jaxlib
import numpy as np

import samjax
from convert.model import flatten, nest
from samjax import export_onnx
from samjax.config import SamConfig, to_dict
from samjax.errors import InputError
from samjax.export_notes import notes
from samjax.model.sam import Masks, Prompts, decode_masks, encode_image
from samjax.outputs import check_whole, whole_folder
from samjax.predict import Sam, normalise

PLATFORMS, FORMATS, SLOTS = ("cpu", "cuda", "tpu"), ("stablehlo", "onnx"), 8
PARTS = {"encoder": ("image_encoder",), "decoder": ("prompt_encoder", "mask_decoder")}  # branches of the parameters
MANIFEST, LOADER, NOTES = "manifest.json", "load.py", "README.md"
FILES = (*(f"{part}.{end}" for part in PARTS for end in ("stablehlo", "npz", "onnx", "onnx.data")), MANIFEST, LOADER,
         NOTES)
LABELS = {"0": "a point beside the object", "1": "a point on it", "2": "a box's top left corner",
          "3": "its bottom right corner", "-1": "not a point: one for every object without a box",
          "-2": "an empty slot"}


@dataclass(frozen=True)
class Argument:
    """An array that goes into a program or comes out: sizes that are left open are letters."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    about: str


@dataclass(frozen=True)
class Program:
    """A function of (weights by name, *inputs), and the weights."""

    function: Callable
    weights: dict[str, np.ndarray]
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]


def export(sam: Sam, folder, platforms: Sequence[str] = PLATFORMS, format: str = "stablehlo",
           slots: int = SLOTS) -> dict:
    """Writes a model as programs for the given platforms.

    sam: any model that `samjax.load` gives; its config says whether to compute in float32 or bfloat16 (weights stay
        as they are).
    folder: is made; an earlier export there is replaced, anything else refused. It appears when it is complete.
    platforms: of "cpu", "cuda", "tpu"; the programs hold a form for each. ONNX has one form.
    format: "stablehlo", or "onnx" (float32 only; t is `slots`, the weights lie in the programs).

    Returns the manifest. Raises InputError: an unknown platform or format, a package is missing, a folder with other
    files, no permission, no room.
    """
    check(folder, platforms, format, sam.config.dtype, slots)
    with whole_folder(folder, FILES) as temporary:
        manifest = describe(sam.config, platforms)
        if format == "onnx":
            manifest["format"], manifest["platforms"] = "samjax export 1, ONNX", ["onnx"]
            manifest["versions"]["jax2onnx"] = export_onnx.version()
        for name, program in programs(sam).items():
            if format == "onnx":
                files = {"program": f"{name}.onnx"}
                export_onnx.write(program, temporary / files["program"], slots)
            else:
                files = {"program": f"{name}.stablehlo", "weights": f"{name}.npz"}
                (temporary / files["program"]).write_bytes(lower(program, platforms).serialize())
                np.savez(temporary / files["weights"], **program.weights)
            manifest["programs"][name] = files | {
                kind: [vars(argument) for argument in getattr(program, kind)] for kind in ("inputs", "outputs")}
        if format == "onnx":
            manifest["slots"] = slots
        else:
            (temporary / LOADER).write_text(resources.files("samjax").joinpath("standalone.py").read_text())
        (temporary / NOTES).write_text(notes(manifest))
        manifest["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                             for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return json.loads(json.dumps(manifest))  # as it is read back: lists for tuples


def check(folder, platforms: Sequence[str] = PLATFORMS, format: str = "stablehlo", dtype: str = "float32",
          slots: int = SLOTS) -> None:
    """Raises the InputErrors of `export` that can be known before the model is loaded."""
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise InputError(f"platform {unknown[0]!r} is none of {', '.join(PLATFORMS)}" if unknown else
                         f"no platform: give some of {', '.join(PLATFORMS)}")
    if format not in FORMATS:
        raise InputError(f"format {format!r} is none of {', '.join(FORMATS)}")
    check_whole(folder, FILES)
    if format == "onnx":
        if dtype != "float32":
            raise InputError(f"ONNX programs compute in float32 only, not {dtype}")
        if slots < 2:
            raise InputError(f"{slots} slots: at least 2 are needed, for a box or for a point and what follows it")
        export_onnx.version()
    elif importlib.util.find_spec("flatbuffers") is None:
        raise InputError("export needs the package flatbuffers, which is not installed: pip install flatbuffers, or "
                         "samjax with its extra `export`")


def programs(sam: Sam) -> dict[str, Program]:
    """Encoder and decoder of a model."""
    config = replace(sam.config, attention="xla")  # the form that every platform compiles
    weights = {part: {name: np.asarray(value) for name, value in flatten({b: sam.params[b] for b in branches}).items()}
               for part, branches in PARTS.items()}
    if odd := {str(array.dtype) for arrays in weights.values() for array in arrays.values() if array.dtype.kind == "V"}:
        raise InputError(f"weights in {min(odd)} cannot be stored for NumPy: keep them in float32 (dtype= of "
                         "samjax.load sets what is computed in)")
    (h, w), c, masks = config.image_size, config.in_channels, config.decoder.masks
    features = Argument("features", "float32", ("b", *config.grid, config.channels), "of the pictures")
    of_object = ("b", "n")
    return {
        "encoder": Program(
            partial(_encode, config), weights["encoder"],
            (Argument("pixels", "uint8", ("b", h, w, c), "pictures at the top left of a black frame, resized to fit"),
             Argument("sizes", "int32", ("b", 2), "height and width of each picture in its frame")),
            (features,)),
        "decoder": Program(
            partial(_decode, config), weights["decoder"],
            (features,
             Argument("points", "float32", (*of_object, "t", 2), "x, y in pixels of the frame"),
             Argument("labels", "int32", (*of_object, "t"), "what each point means"),
             Argument("mask_logits", "float32", (*of_object, *config.mask_size), "an earlier answer's, or zeros"),
             Argument("has_mask", "bool", of_object, "whether mask_logits count")),
            (Argument("logits", "float32", (*of_object, masks, *config.mask_size),
                      "over the whole frame, foreground above 0: the answer to unambiguous prompts, then the three "
                      "alternatives"),
             Argument("iou", "float32", (*of_object, masks), "the model's own estimate of each mask's IoU"))),
    }


def lower(program: Program, platforms: Sequence[str] = PLATFORMS) -> "jax.export.Exported":
    """The program with its sizes b, n, t open, in a form for each platform."""
    scope = jax.export.SymbolicScope()
    inputs = [jax.ShapeDtypeStruct(jax.export.symbolic_shape(",".join(map(str, i.shape)), scope=scope), i.dtype)
              for i in program.inputs]
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in program.weights.items()}
    with _without_places():
        return jax.export.export(jax.jit(program.function), platforms=tuple(platforms))(weights, *inputs)


def describe(config: SamConfig, platforms: Sequence[str]) -> dict:
    """The manifest, but for the programs and files."""
    return {
        "format": "samjax export 1", "model": config.name, "dtype": config.dtype, "platforms": list(platforms),
        "versions": {"samjax": samjax.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "image_size": list(config.image_size), "channels": config.in_channels, "mask_size": list(config.mask_size),
        "resize": config.resize, "normalise": config.normalise, "pixel_mean": list(config.pixel_mean),
        "pixel_std": list(config.pixel_std), "labels": LABELS, "programs": {}, "config": to_dict(config),
    }


def _encode(config: SamConfig, weights: dict, pixels, sizes):
    return encode_image(config, nest(weights), normalise(config, pixels, sizes))


def _decode(config: SamConfig, weights: dict, features, *prompts) -> tuple:
    masks: Masks = decode_masks(config, nest(weights), features, Prompts(*prompts))
    return tuple(masks)


@contextlib.contextmanager
def _without_places():
    """JAX writes into a program where each operation's source lies; that is this machine's business."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
