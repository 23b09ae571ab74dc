"""Training data: sources of pictures with masks, and the pipeline that makes batches of them.

    source = open_source("folder", split="train")
    with contextlib.closing(iter(make_pipeline([source], config, batch=8))) as batches:
        for batch in batches: ...

Everything but `make_pipeline` does without JAX and grain, so it is quick to import.
"""

import importlib

_HOMES = {
    "Mask": "records", "Part": "records", "Polygons": "records", "Record": "records", "Rle": "records",
    "Instances": "instances", "Results": "results",
    "Pictures": "pictures", "Source": "sources", "Subset": "sources", "with_features": "sources",
    "open_source": "layouts", "Augment": "transforms", "check": "check", "make_pipeline": "pipeline",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'samjax.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"samjax.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_HOMES))
