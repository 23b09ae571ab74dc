"""A tiny SAM trained from nothing on generated shapes, by the paper's recipe in small.

    python experiments/toy.py [--steps 900] [--out experiments/results/toy_training.json] [--sheet FOLDER]

Every picture holds two nests of three shapes, one within the other, so that a click on the innermost may mean any of
the three. Hardware: 2 CPU cores, five minutes (four of
them steps). Result: of one click, the IoU of the most confident mask rises from 0.06 to 0.47, of the best of three from
0.07 to 0.71; the three masks of a click on an innermost shape are as different (mean IoU 0.35 between two) as nested
shapes are, and match the three true ones with 0.69.

Scored on pictures not trained on, with one click at the point farthest from the shape's boundary: IoU of the most
confident mask, of the best of three; and whether the three masks of a click on an innermost shape differ: the mean IoU
between each two of them, and with the three true shapes, matched as well as they can be.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from samjax.config import Decoder, SamConfig, ViT  # noqa: E402
from samjax.model.sam import Prompts, decode_masks, encode_image, init  # noqa: E402
from samjax.predict import normalise  # noqa: E402
from samjax.train.recipe import Recipe, to_dict  # noqa: E402
from samjax.train.step import init_state, make_step  # noqa: E402

SIDE, CELL = 64, 2  # pixels of a picture, and of a cell of its masks
CONFIG = SamConfig("toy", ViT(96, 4, 4, (0, 1, 2, 3), patch=8), Decoder(heads=4, mlp=128), channels=64,
                   image_size=(SIDE, SIDE), decode_chunk=6)
RECIPE = Recipe(batch=8, objects=6, points=2, refinements=1, lr=1e-3, warmup=50, schedule="cosine", weight_decay=0.05,
                layer_decay=1.0, clip=1.0, drop_path=0.0, dropout=0.0)


def draw_nest(random, image, masks, left):
    """Three shapes, each within the one before; their masks are whole, without the holes of the inner ones."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    centre = np.array([random.uniform(18, SIDE - 18), random.uniform(15, 17) + left])
    half = random.uniform((11, 11), (17, 14))
    for _ in range(3):
        angle, power = random.uniform(-0.5, 0.5), random.choice([1.2, 2.0, 6.0])  # diamonds, ellipses, boxes
        dy, dx = y - centre[0], x - centre[1]
        v, u = dy * np.cos(angle) + dx * np.sin(angle), dx * np.cos(angle) - dy * np.sin(angle)
        inside = np.abs(v / half[0]) ** power + np.abs(u / half[1]) ** power < 1
        if masks and len(masks) % 3:
            inside &= masks[-1]
        image[inside] = random.integers(30, 226, 3)
        masks.append(inside)
        half = half * random.uniform(0.5, 0.68, 2)
        centre = centre + random.uniform(-0.12, 0.12, 2) * half


def make_batch(seed, images):
    random = np.random.default_rng(seed)
    batch = {"image": np.zeros((images, SIDE, SIDE, 3), np.uint8),
             "size": np.full((images, 2), SIDE, np.int32), "valid": np.ones((images, 6), bool),
             "masks": np.zeros((images, 6, SIDE // CELL, SIDE // CELL), bool)}
    for i in range(images):
        image = np.zeros((SIDE, SIDE, 3)) + random.integers(0, 256, 3)
        masks = []
        for left in (0, SIDE // 2):
            draw_nest(random, image, masks, left)
        image += random.normal(0, 6, image.shape)
        batch["image"][i] = image.clip(0, 255).astype(np.uint8)
        small = np.array(masks).reshape(6, SIDE // CELL, CELL, SIDE // CELL, CELL).mean((2, 4))
        batch["masks"][i] = small >= 0.5
    return batch


def centre_click(mask):
    """x, y in pixels of the point farthest from the boundary."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), mask.shape)
    return column * CELL + CELL / 2 - 0.5, row * CELL + CELL / 2 - 0.5


@jax.jit
def answer(params, image, size, points):
    """Three masks and their predicted IoU for a click on each of n objects."""
    b, n = points.shape[:2]
    features = encode_image(CONFIG, params, normalise(CONFIG, image, size))
    slots = jnp.stack([points, jnp.zeros_like(points)], axis=2)
    labels = jnp.broadcast_to(jnp.array([1, -1]), (b, n, 2))
    masks = decode_masks(CONFIG, params, features, Prompts(slots, labels), multimask=True)
    return masks.logits > 0, masks.iou


def iou(a, b):
    return (a & b).sum((-2, -1)) / np.maximum((a | b).sum((-2, -1)), 1)


def evaluate(params, batch):
    """The scores of the docstring, and the masks."""
    points = np.array([[centre_click(mask) for mask in masks] for masks in batch["masks"]], np.float32)
    masks, predicted = jax.device_get(answer(params, batch["image"], batch["size"], points))
    with_truth = iou(masks, batch["masks"][:, :, None])
    confident = np.take_along_axis(with_truth, predicted.argmax(-1)[..., None], -1)
    inner = masks[:, [2, 5]]  # clicks on the innermost shapes
    truths = batch["masks"].reshape(-1, 2, 3, *masks.shape[-2:])
    pairs = iou(inner[:, :, :, None], inner[:, :, None])[..., *np.triu_indices(3, 1)]
    against = iou(inner[:, :, :, None], truths[:, :, None])
    matched = max_over_orders(against)
    scores = {"one_click_confident": confident.mean(), "one_click_best_of_three": with_truth.max(-1).mean(),
              "among_the_three_masks": pairs.mean(), "three_masks_with_three_truths": matched.mean(),
              "clicks_that_find_all_three": (against.max(2).min(-1) > 0.7).mean()}
    return {name: round(float(value), 4) for name, value in scores.items()}, points, masks


def max_over_orders(against):
    """(..., 3, 3) -> (...): the mean of the best one-to-one matching."""
    return np.max([against[..., [0, 1, 2], order].mean(-1) for order in permutations(range(3))], axis=0)


def sheet(folder, batch, points, masks, rows=12, scale=3):
    """A row for each click on an innermost shape: the picture with the click, the three masks, the three truths."""
    tint = np.array([255, 60, 60])
    lines = []
    for i in range(rows):
        panels = [batch["image"][i]]
        for mask in [*masks[i, 2], *batch["masks"][i, :3]]:
            big = mask.repeat(CELL, 0).repeat(CELL, 1)[..., None]
            panels.append(np.where(big, batch["image"][i] * 0.4 + tint * 0.6, batch["image"][i]).astype(np.uint8))
        line = Image.fromarray(np.concatenate(panels, 1)).resize((SIDE * 7 * scale, SIDE * scale), Image.NEAREST)
        x, y = (points[i, 2] + 0.5) * scale
        ImageDraw.Draw(line).ellipse([x - 5, y - 5, x + 5, y + 5], fill="white", outline="black", width=2)
        lines.append(np.array(line))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(lines)).save(folder / "toy_masks.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "toy_training.json")
    parser.add_argument("--sheet", type=Path, help="a folder for a sheet of pictures and their masks")
    args = parser.parse_args()
    recipe = replace(RECIPE, steps=args.steps)
    params = init(CONFIG, jax.random.key(0))
    held_out = make_batch(10**6, 64)
    untrained, _, _ = evaluate(params, held_out)
    print("untrained", untrained, flush=True)
    state, step, curve = init_state(CONFIG, recipe, params, jax.random.key(1)), make_step(CONFIG, recipe), []
    step = jax.jit(step, donate_argnums=0)
    begun, cpu = time.perf_counter(), time.process_time()
    for i in range(args.steps):
        state, metrics = step(state, make_batch(i, recipe.batch))
        if i % 50 == 0 or i == args.steps - 1:
            curve.append({"step": i} | {name: round(float(value), 4) for name, value in metrics.items()})
            print(f"{i:5} {time.perf_counter() - begun:6.1f} s", curve[-1], flush=True)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    trained, points, masks = evaluate(state.params, held_out)
    print("trained", trained, f"{seconds:.0f} s, {cpu:.0f} s of CPU time")
    args.out.write_text(json.dumps({
        "cpu": platform.processor() or platform.machine(), "cores": 2, "jax": jax.__version__, "steps": args.steps,
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "untrained": untrained, "trained": trained,
        "recipe": to_dict(recipe), "curve": curve}, indent=1) + "\n")
    if args.sheet:
        sheet(args.sheet, held_out, points, masks)


if __name__ == "__main__":
    main()
