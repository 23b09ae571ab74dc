"""Masks by the exported model in this folder, without samjax: needs jax, flatbuffers, numpy, and Pillow for pictures.

    python load.py PICTURE MASK.png X,Y [X,Y,0 ...] [X0,Y0,X1,Y1]

X,Y is a point on the object, X,Y,0 one beside it, four numbers a box; in the picture's pixels, from its top left.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np
from PIL import Image, ImageOps


def load(folder):
    """(encode, decode, manifest): the manifest names the arguments and results of both."""
    folder = Path(folder)

    def program(name):
        exported = jax.export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
        return partial(jax.jit(exported.call), jax.device_put(dict(np.load(folder / f"{name}.npz"))))

    return program("encoder"), program("decoder"), json.loads((folder / "manifest.json").read_text())


def segment(model, picture, points=(), box=None):
    """bool (masks, h, w) and predicted IoU (masks,) of one object; points (x, y, 1 or 0), box (x0, y0, x1, y1)."""
    encode, decode, manifest = model
    picture = ImageOps.exif_transpose(Image.open(picture)).convert("L" if manifest["channels"] == 1 else "RGB")
    (height, width), area = manifest["image_size"], manifest["resize"] == "area"
    scale = min(height / picture.height, width / picture.width)
    h, w = (max(1, int(side * scale + 0.5)) for side in picture.size[::-1])
    frame = np.zeros((1, height, width, manifest["channels"]), np.uint8)
    small = picture.resize((w, h), Image.Resampling.BOX if area and scale < 1 else Image.Resampling.BILINEAR)
    frame[0, :h, :w] = np.asarray(small).reshape(h, w, -1)
    features = encode(frame, np.int32([[h, w]]))

    slots = [(x, y, label) for x, y, label in points]
    slots += [(0, 0, -1)] if box is None else [(*box[:2], 2), (*box[2:], 3)]
    slots = np.array(slots, np.float64)
    xy = slots[:, :2] * (scale if area else (w / picture.width, h / picture.height))
    no_mask = np.zeros((1, 1, *manifest["mask_size"]), np.float32)
    logits, iou = decode(features, xy[None, None].astype(np.float32), slots[None, None, :, 2].astype(np.int32),
                         no_mask, np.zeros((1, 1), bool))

    grow = partial(jax.image.resize, method="linear", antialias=False)
    whole = grow(logits[0, 0], (logits.shape[2], height, width))[:, :h, :w]
    return np.asarray(grow(whole, (len(whole), picture.height, picture.width)) > 0), np.asarray(iou[0, 0])


if __name__ == "__main__":
    source, target, *words = sys.argv[1:]
    numbers = [tuple(map(float, word.split(","))) for word in words]
    clicks = [(*point, 1)[:3] for point in numbers if len(point) < 4]
    corners = next((box for box in numbers if len(box) == 4), None)
    masks, ious = segment(load(Path(__file__).parent), source, clicks, corners)
    best = 0 if corners or len(clicks) > 1 else 1 + ious[1:].argmax()  # one click may mean a part or the whole
    Image.fromarray(masks[best]).save(target)
    print(f"{target}: {masks[best].sum()} pixels, predicted IoU {ious[best]:.2f}")
