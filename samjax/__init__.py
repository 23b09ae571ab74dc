"""The Segment Anything Model in JAX and Flax.

Names are imported when first used, so that `import samjax` is quick and the command line can answer simple questions
without starting JAX.
"""

import importlib

_HOMES = {
    "Embedding": "samjax.predict", "Sam": "samjax.predict", "Segmentation": "samjax.predict", "load": "samjax.predict",
    "Masks": "samjax.model.sam", "Prompts": "samjax.model.sam", "decode_masks": "samjax.model.sam",
    "encode_image": "samjax.model.sam", "init": "samjax.model.sam",
    "embed": "samjax.bulk", "Embeddings": "samjax.embeddings",
    "SamConfig": "samjax.config", "InputError": "samjax.errors",
    "mask_to_logits": "samjax.geometry", "read_image": "samjax.image",
    "normalise": "samjax.predict", "prepare": "samjax.geometry",
    "quantise": "samjax.model.quantise", "dequantise": "samjax.model.quantise",
}
_MODULES = ("data", "embeddings", "evaluate", "export", "parallel", "tiling", "train", "zoom")  # used by name
__all__ = sorted([*_HOMES, *_MODULES])
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"samjax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'samjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))
