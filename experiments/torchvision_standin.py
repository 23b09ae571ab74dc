"""The few functions of torchvision that the official packages call, for machines without torchvision.

`install()` does nothing where the real one is present. `segment_anything` and `mobile_sam` take a resize and
NMS from it; `timm`, which `mobile_sam` imports for three small helpers, names much of the rest without ever
using it: those names become empty classes.
"""

import importlib.machinery
import importlib.util
import sys
import types


def install() -> None:
    """Put the stand-in where `import torchvision` finds it, unless the real package is there."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    named = {
        "torchvision": {"__version__": "0.0"},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "torchvision.ops.misc": {},
        "torchvision.datasets": {},
        "torchvision.models": {},
        "torchvision.models.feature_extraction": {},
    }
    for name, attributes in named.items():
        module = _Module(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        vars(module).update(attributes)
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)


def resize(image, size):
    """A PIL image to (h, w), antialiased bilinear: what torchvision does to PIL images by default."""
    from PIL import Image

    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def to_pil_image(array):
    """uint8 (h, w, 3) to a PIL image."""
    from PIL import Image

    return Image.fromarray(array)


def box_area(boxes):
    """(n, 4) x0 y0 x1 y1 -> (n,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes, scores, classes, iou_threshold):
    """Indices kept, best first: greedy, within each class; an IoU above iou_threshold suppresses."""
    import torch

    order = torch.argsort(scores, descending=True, stable=True)
    boxes, classes, areas = boxes[order].float(), classes[order], box_area(boxes[order].float())
    alive = torch.ones(len(order), dtype=torch.bool)
    kept = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        low, high = torch.maximum(boxes[i, :2], boxes[:, :2]), torch.minimum(boxes[i, 2:], boxes[:, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        alive &= ~((overlap / (areas[i] + areas - overlap) > iou_threshold) & (classes == classes[i]))
    return order[torch.tensor(kept, dtype=torch.long)]


class _Unused(type):
    """A class any of whose attributes is such a class again."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused(name, (), {})


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused(name, (), {})
