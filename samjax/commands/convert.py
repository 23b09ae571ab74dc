"""`samjax convert`: model files from one format into another."""

import math
import os

from samjax.commands.common import add_command, emit
from samjax.errors import InputError

MORE = """\
The formats follow from the names: .pth or .pt, .safetensors; any other DST is a directory written by Orbax.
SRC may also be a known name (samjax weights). float32 is converted bit for bit, half precision becomes float32.
--int8 writes large weights as int8 (.safetensors or a directory), which every command then uses as such; without
it an int8 SRC becomes the float32 that it stands for.

examples:
  samjax convert sam_vit_b_01ec64.pth vit_b                        PyTorch to JAX (an Orbax directory)
  samjax convert vit_b vit_b.pth                                   and back: the official code loads it
  samjax convert vit_h vit_h.safetensors --naming transformers     for transformers' SamModel
  samjax convert vit_h vit_h.safetensors --int8                    a quarter of its size
"""


def add(subparsers) -> None:
    parser = add_command(subparsers, "convert", run, "convert a model between PyTorch, safetensors and Orbax", MORE)
    parser.add_argument("source", metavar="SRC", help="a file, a directory or a known name")
    parser.add_argument("target", metavar="DST", help="the file or directory to write")
    parser.add_argument("--naming", choices=("official", "transformers"), default="official",
                        help="the names of the tensors in DST (default: %(default)s)")

    parser.add_argument("--int8", action="store_true", help="write large weights as int8")


def run(args) -> None:
    import convert
    from convert.model import size_of
    from samjax.weights import resolve

    source = resolve(args.source)
    if os.path.realpath(source) == os.path.realpath(args.target):
        raise InputError(f"{args.target}: is SRC itself; choose another DST")
    model = convert.convert(source, args.target, args.naming, args.int8)
    numbers = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    emit(f"{model.config.name}: {len(model.tensors)} tensors, {numbers:,} parameters; {source} "
         f"({_megabytes(size_of(source))}) -> {args.target} ({_megabytes(size_of(args.target))})")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
