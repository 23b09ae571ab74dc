"""Small data sets in every layout, made from random shapes."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def shapes(rng: np.random.Generator, image_hw, n: int) -> list[np.ndarray]:
    """n masks bool (h, w): ellipses of at least 32 px that may overlap."""
    h, w = image_hw
    y, x = np.mgrid[:h, :w]
    masks = []
    while len(masks) < n:
        cy, cx, a, b = rng.uniform(0, h), rng.uniform(0, w), *rng.uniform(5, min(h, w) / 3, 2)
        mask = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
        if mask.sum() >= 32:
            masks.append(mask)
    return masks


def picture(rng: np.random.Generator, image_hw) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*image_hw, 3), np.uint8))


def compressed(mask: np.ndarray) -> dict:
    """As pycocotools writes it."""
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def members(seed: int = 0, pictures: int = 4, image_hw=(40, 60), objects: int = 5):
    """[(stem, PNG or JPEG bytes, masks)] of SA-1B-like pictures."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(pictures):
        file = io.BytesIO()
        picture(rng, image_hw).save(file, "JPEG")
        out.append((f"sa_{k}", file.getvalue(), shapes(rng, image_hw, objects)))
    return out


def sa1b_json(stem: str, masks) -> bytes:
    h, w = masks[0].shape
    return json.dumps({"image": {"file_name": f"{stem}.jpg", "height": h, "width": w}, "annotations": [
        {"segmentation": compressed(mask), "area": int(mask.sum())} for mask in masks]}).encode()


def sa1b_folder(folder: Path, made) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, jpeg, masks in made:
        (folder / f"{stem}.jpg").write_bytes(jpeg)
        (folder / f"{stem}.json").write_bytes(sa1b_json(stem, masks))
    return folder


def sa1b_tar(path: Path, made, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for stem, jpeg, masks in made:
            for name, data in ((f"./{stem}.json", sa1b_json(stem, masks)), (f"./{stem}.jpg", jpeg)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def instance_folder(root: Path, seed: int = 0, pictures: int = 4, image_hw=(40, 60), objects: int = 4) -> Path:
    """images/ and 16-bit masks/ of instance ids."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for k in range(pictures):
        ids = np.zeros(image_hw, np.uint16)
        for i, mask in enumerate(shapes(rng, image_hw, objects)):
            ids[mask] = i + 1
        picture(rng, image_hw).save(root / "images" / f"{k}.png")
        Image.fromarray(ids).save(root / "masks" / f"{k}.png")
    return root


def coco_file(path: Path, images: dict[str, tuple[int, int]], annotations: list[dict]) -> Path:
    """images: name -> (h, w), ids from 1 in that order."""
    content = {"images": [{"id": i, "file_name": name, "height": hw[0], "width": hw[1]}
                          for i, (name, hw) in enumerate(images.items(), 1)], "annotations": annotations}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
