"""Model files: PyTorch's `.pth`, `.safetensors` and Orbax directories, in any direction, strict and exact.

Nothing here imports torch, and nothing in a file is ever executed.
"""

from convert.model import Model, flatten, read, stored_form, write
from convert.table import KINDS, rows

__all__ = ["KINDS", "Model", "convert", "flatten", "read", "rows", "stored_form", "write"]


def convert(source, target, naming: str = "official", int8: bool = False) -> Model:
    """Converts one model file into another; the names' endings say which formats. Returns what was read.

    Bit-exact for float32 files; half-precision files become float32, and so do int8 ones unless int8 is asked for
    (see `write`). Raises `samjax.errors.InputError`.
    """
    model = read(source)
    write(target, model, naming, int8)
    return model
