"""The README's two pictures, made of examples/coffee.jpg (CC0) with MobileSAM.

    python experiments/readme_pictures.py

docs/everything.jpg: all masks, default settings. docs/segment.jpg: the three masks of one click, a part to the whole,
and the masks of two boxes. A minute and a half of CPU on a machine that was busy otherwise.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PHOTO = ROOT / "examples" / "coffee.jpg"
POINT, BOXES = [290, 160], [[170, 15, 412, 308], [325, 65, 426, 328]]
GAP = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--model", default="mobile_sam")
    args = parser.parse_args()
    import samjax
    from samjax.annotations import overlay_all
    from samjax.draw import overlay
    from samjax.image import read_image

    sam, photo = samjax.load(args.model), read_image(PHOTO)
    args.out.mkdir(exist_ok=True)
    overlay_all(photo, sam.everything(photo, output_mode="coco_rle")).save(args.out / "everything.jpg", quality=88)
    embedding = sam.encode(photo)
    click = sam.segment(embedding, points=[POINT], labels=[1])
    order = np.argsort([mask.sum() for mask in click.masks[0]])
    drawn = [overlay(photo, click.masks[0, n][None], [[POINT]]) for n in order]
    boxes = sam.segment(embedding, boxes=BOXES, multimask=False)
    drawn.append(overlay(photo, boxes.masks[:, 0], boxes=BOXES))
    beside([picture.resize((450, 300), Image.Resampling.LANCZOS) for picture in drawn]).save(
        args.out / "segment.jpg", quality=85)


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in two rows."""
    w, h = pictures[0].size
    columns = -(-len(pictures) // 2)
    out = Image.new("RGB", (columns * (w + GAP) - GAP, 2 * (h + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        out.paste(picture, (i % columns * (w + GAP), i // columns * (h + GAP)))
    return out


if __name__ == "__main__":
    main()
