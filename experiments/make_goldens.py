"""Golden outputs of the official PyTorch MobileSAM on the bundled photograph: of prompts, and of its generator.

    python experiments/make_goldens.py mobile_sam.pt [--image examples/coffee.jpg] [--out tests/data]

mobile_sam.pt is the published file. CPU, float32, two minutes. tests/data/README.md describes the layout.
"""

import argparse
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import peers
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CUP, SAUCER, SPOON = [170, 15, 412, 308], [75, 70, 482, 388], [325, 65, 426, 328]
PROMPTS = [
    {"id": "point1_multi", "point_coords": [[290, 160]], "point_labels": [1], "multimask_output": True},
    {"id": "point1_single", "point_coords": [[290, 160]], "point_labels": [1], "multimask_output": False},
    {"id": "points2_mixed", "point_coords": [[130, 230], [290, 130]], "point_labels": [1, 0],
     "multimask_output": False},
    {"id": "box", "box": CUP, "multimask_output": False},
    {"id": "box_negpoint", "box": SAUCER, "point_coords": [[290, 130]], "point_labels": [0],
     "multimask_output": False},
    {"id": "mask_refine", "point_coords": [[290, 160]], "point_labels": [1], "mask_from": "point1_multi",
     "multimask_output": False},
    {"id": "boxes3", "boxes": [CUP, SAUCER, SPOON], "multimask_output": False},
]
# Thresholds lower than the default ones, so that there is something to compare on few points.
EVERYTHING = {"points_per_side": 8, "crop_n_layers": 1, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "coffee.jpg")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "data")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.image.stem
    np.savez_compressed(args.out / f"mobilesam_{stem}.npz", **goldens(args.checkpoint, args.image, PROMPTS))
    found = json.dumps(everything(args.checkpoint, args.image, EVERYTHING)).encode()
    (args.out / f"everything_{stem}.json.gz").write_bytes(gzip.compress(found, mtime=0))


def everything(checkpoint, image_path, settings) -> dict:
    """The official generator's records, masks as uncompressed RLE, and what they were made with."""
    generator = peers.official_generator(peers.official_mobile_sam(checkpoint), output_mode="uncompressed_rle",
                                         **settings)
    found = generator.generate(np.array(Image.open(image_path).convert("RGB")))
    meta = {"image": Path(image_path).name, "image_sha256": _sha256(Path(image_path).read_bytes()), "args": settings,
            "weights_sha256": _sha256(Path(checkpoint).read_bytes()), "versions": peers.versions()}
    return {"meta": meta, "annotations": found}


def goldens(checkpoint, image_path, prompts) -> dict[str, np.ndarray]:
    """{name: array} for one photograph and a list of prompts."""
    import torch

    torch.set_num_threads(2)
    image = np.array(Image.open(image_path).convert("RGB"))
    predictor = peers.official_predictor(peers.official_mobile_sam(checkpoint))
    predictor.set_image(image)
    resized = predictor.transform.apply_image(image)
    embedding = predictor.features.numpy()
    arrays = {
        "image_hw": np.array(image.shape[:2]),
        "image_sha256": np.array(_sha256(Path(image_path).read_bytes())),
        "decoded_rgb_sha256": np.array(_sha256(image.tobytes())),
        "resized_hw": np.array(resized.shape[:2]),
        "resized_sha256": np.array(_sha256(resized.tobytes())),
        "weights_sha256": np.array(_sha256(Path(checkpoint).read_bytes())),
        "embedding_f32_s4": embedding[:, ::4, ::4, ::4],
        "embedding_stats": np.array([f(embedding, dtype=np.float64) for f in (np.mean, np.std)]
                                    + [embedding.min(), embedding.max()]),
        "prompts": np.array(json.dumps(prompts)),
        "versions": np.array(json.dumps(peers.versions())),
    }
    low_res = {}
    for prompt in prompts:
        masks, iou, logits = _predict(predictor, prompt, low_res)
        name = prompt["id"]
        low_res[name] = logits[0, np.argmax(iou[0])][None]
        arrays |= {
            f"{name}/iou": iou,
            f"{name}/low_res_f32_s4": logits[..., ::4, ::4],
            f"{name}/masks_packed": np.packbits((masks > 0).reshape(*masks.shape[:2], -1), axis=-1),
            f"{name}/masks_shape": np.array(masks.shape),
            f"{name}/near_zero_px": (np.abs(masks) < 0.01).sum((2, 3)),
        }
    return arrays


def _predict(predictor, prompt, low_res):
    """The official predictor's logits (n, m, h, w), iou (n, m) and low-resolution logits (n, m, 256, 256)."""
    import torch

    if "boxes" in prompt:
        boxes = predictor.transform.apply_boxes_torch(torch.tensor(prompt["boxes"]), predictor.original_size)
        outputs = predictor.predict_torch(None, None, boxes=boxes, return_logits=True,
                                          multimask_output=prompt["multimask_output"])
        return tuple(x.numpy() for x in outputs)
    given = {key: np.array(prompt[key]) for key in ("point_coords", "point_labels", "box") if key in prompt}
    if "mask_from" in prompt:
        given["mask_input"] = low_res[prompt["mask_from"]]
    outputs = predictor.predict(**given, multimask_output=prompt["multimask_output"], return_logits=True)
    return tuple(x[None] for x in outputs)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
