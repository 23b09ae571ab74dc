"""Pictures of objects that a model did badly: what was there, the truth and the answer side by side."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, COLUMNS = 300, 6, 2  # pixels; panels beside each other on the sheet
MARGIN = 0.35  # of the object's larger side, around it
TRUTH, ANSWER, FRAME = (40, 200, 90), (255, 70, 160), (255, 200, 0)


def panel(sam, record, row: dict) -> Image.Image:
    """Three views of the object's surroundings: the picture with the box, the truth, the answer to the box."""
    image, truth = record.image, record.objects[row["object"]].mask()
    box = [row[name] for name in ("x0", "y0", "x1", "y1")]
    answer = sam.segment(sam.encode(image), boxes=box, multimask=False).masks[0, 0]
    window = surroundings(box, image.shape[:2])
    views = [view(image, window), view(image, window, truth, TRUTH), view(image, window, answer, ANSWER)]
    scale = views[0].width / (window[2] - window[0])
    corners = [(value - window[i % 2]) * scale for i, value in enumerate(box)]
    for each in views:
        ImageDraw.Draw(each).rectangle(corners, outline=FRAME, width=2)
    canvas = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE), (128, 128, 128))
    for i, each in enumerate(views):
        canvas.paste(each, (i * (SIDE + GAP) + (SIDE - each.width) // 2, (SIDE - each.height) // 2))
    return canvas


def surroundings(box: list, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square window around the box, of at least 64 pixels, cut at the picture's border."""
    x0, y0, x1, y1 = box
    side = max(64, (1 + 2 * MARGIN) * max(x1 - x0, y1 - y0))
    x, y, (h, w) = (x0 + x1) / 2, (y0 + y1) / 2, image_hw
    return (max(0, int(x - side / 2)), max(0, int(y - side / 2)), min(w, int(np.ceil(x + side / 2))),
            min(h, int(np.ceil(y + side / 2))))


def view(image: np.ndarray, window, mask: np.ndarray | None = None, colour=None) -> Image.Image:
    x0, y0, x1, y1 = window
    part = image[y0:y1, x0:x1].astype(float)
    if mask is not None:
        inside = mask[y0:y1, x0:x1, None]
        part = np.where(inside, 0.45 * part + 0.55 * np.array(colour), 0.7 * part)
    scale = SIDE / max(part.shape[:2])
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    return Image.fromarray(part.astype(np.uint8)).resize(size, Image.NEAREST if scale > 3 else Image.BILINEAR)


def caption(row: dict) -> str:
    known = lambda value, text: "-" if value is None else format(value, text)
    return (f"{row['set']}: box {100 * row['box']:.0f} (says {100 * (row['box_predicted'] or 0):.0f}), point "
            f"{100 * row['point']:.0f}, area {row['area']:,} px, contrast {known(row['contrast'], '.0f')}, "
            f"thinness {known(row['thinness'], '.1f')}")


def sheet(panels: list[tuple[Path, str]]) -> Image.Image:
    """All of them on one picture, numbered, with their captions."""
    font = ImageFont.load_default(17)
    width, height = 3 * SIDE + 2 * GAP, SIDE + 30
    rows = -(-len(panels) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (width + 4 * GAP), max(rows, 1) * (height + 3 * GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (path, text) in enumerate(panels):
        x, y = (i % COLUMNS) * (width + 4 * GAP) + 2 * GAP, (i // COLUMNS) * (height + 3 * GAP) + GAP
        draw.text((x, y), f"{i + 1}. {text}", "black", font)
        with Image.open(path) as picture:
            canvas.paste(picture, (x, y + 28))
    return canvas
