"""`samjax export`: a model as programs that run without samjax."""

import json
import os

from samjax.commands.common import add_command, add_dtype, emit
from samjax.errors import InputError

MORE = """\
Written to DIR: encoder.stablehlo and decoder.stablehlo (programs serialised by jax.export, one form for each platform;
numbers of pictures, objects and points are open), encoder.npz and decoder.npz (their weights), manifest.json (inputs,
outputs, sizes, labels, versions, sha256), load.py (uses them with JAX and NumPy alone) and README.md. An earlier export
in DIR is replaced, anything else refused.

--format onnx writes encoder.onnx and decoder.onnx, weights within, for onnxruntime; every object then has --slots slots
(a point is one, a box two, and where there is no box label -1 takes one; -2 marks the unused).

Needs the package flatbuffers (extra `export`), or jax2onnx (extra `onnx`).

examples:
  samjax export mobile_sam exported
  python exported/load.py photo.jpg mask.png 320,240            without samjax
  samjax export DIR exported --dtype bfloat16 --platforms cuda  the model of a fine-tuning
"""


def add(subparsers) -> None:
    parser = add_command(subparsers, "export", run, "write a model as programs (StableHLO) that need only JAX", MORE)
    parser.add_argument("model", metavar="MODEL", help="a known name (samjax weights) or a file or directory")
    parser.add_argument("folder", metavar="DIR", help="the directory to write")
    parser.add_argument("--platforms", metavar="P,P", default="cpu,cuda,tpu",
                        help="what the programs are to run on (default: %(default)s)")
    add_dtype(parser)
    parser.add_argument("--format", choices=("stablehlo", "onnx"), default="stablehlo",
                        help="of the programs (default: %(default)s)")
    parser.add_argument("--slots", type=int, metavar="N", default=8,
                        help="of an object, in ONNX programs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the manifest on stdout")


def run(args) -> None:
    from samjax.outputs import check_folder
    from samjax.weights import resolve

    check_folder(args.folder)  # says at once what is wrong, before JAX is started
    if os.path.realpath(resolve(args.model)) == os.path.realpath(args.folder):
        raise InputError(f"{args.folder}: is MODEL itself; choose another DIR")

    import samjax
    from samjax.export import check, export

    platforms = list(dict.fromkeys(filter(None, args.platforms.split(","))))
    check(args.folder, platforms, args.format, args.dtype, args.slots)
    sam = samjax.load(args.model, dtype=args.dtype)
    manifest = export(sam, args.folder, platforms, args.format, args.slots)
    if args.json:
        emit(json.dumps(manifest, indent=1))
        return
    size = sum(file["bytes"] for file in manifest["files"].values())
    emit(f"{manifest['model']}, {args.dtype}, for {', '.join(manifest['platforms'])}: {len(manifest['files']) + 1} "
         f"files, {size / 1e6:,.1f} MB -> {args.folder}")
