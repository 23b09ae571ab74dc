"""The exported programs as ONNX, for onnxruntime, browsers and phones: converted by jax2onnx, the weights within.

Pictures (b) and objects (n) stay open as in StableHLO; slots do not, because jax2onnx loses sizes such as t + 5. That
costs nothing but the unused slots' time: label -2 masks them out of every attention.
"""

import importlib.metadata
from pathlib import Path
from unittest import mock

import jax
from jax import lax

from samjax.errors import InputError
from samjax.quiet import quiet

SINGLE = 1_500_000_000  # bytes of weights in one file; protobuf ends at 2 GB, and larger ones get a second file


def version() -> str:
    """jax2onnx's, or InputError where it is missing."""
    try:
        return importlib.metadata.version("jax2onnx")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("ONNX needs the package jax2onnx, which is not installed: pip install jax2onnx, or samjax "
                         "with its extra `onnx`") from None


def write(program, path: Path, slots: int) -> None:
    """Writes a `samjax.export.Program`; beyond SINGLE its weights lie beside it, as PATH.data."""
    from jax2onnx import to_onnx

    inputs = [jax.ShapeDtypeStruct(tuple(slots if size == "t" else size for size in i.shape), i.dtype)
              for i in program.inputs]
    small = sum(array.nbytes for array in program.weights.values()) < SINGLE
    with quiet("onnx_ir"), mock.patch.object(lax, "platform_dependent", _default):
        to_onnx(lambda *arrays: program.function(program.weights, *arrays), inputs, model_name=path.stem,
                return_mode="file", output_path=path, export_mode="web" if small else "standard",
                input_names=[i.name for i in program.inputs], output_names=[o.name for o in program.outputs])


def _default(*arrays, default, **_):
    """`lax.platform_dependent` of a program that all platforms share: the form that is not made for XLA on CPUs."""
    return default(*arrays)
