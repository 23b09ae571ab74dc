"""samjax beside the official outputs: every golden prompt, in float32 and in bfloat16.

    python experiments/parity.py [--reference FOLDER] [--vith-decoder sam_vit_h_decode.onnx]

The bundled photograph always; with --reference (golden/ and images/, see tests/data/README.md) also the official
notebook's three photographs, LiteMedSAM and a second ViT-H embedding; with --vith-decoder (see vith_decoder.py) the
real ViT-H decoder. Checkpoints are fetched. About three minutes on two cores. Bars, float32: embedding 2e-4 of its
largest value, predicted IoU 1e-3, each mask's IoU with the official one 0.999; ViT-H logits 1e-3 of the largest;
random ViT encoders 1e-5. bfloat16: each mask's IoU with float32 0.98 (masks empty in both do not count).

Result (experiments/results/parity.json): float32 within 7e-6 everywhere, every mask's IoU 1.0000. bfloat16: 0.988 or
better for every mask returned; 0.982 for all four masks of ViT-H's decoder, looked at in low resolution.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import peers
from golden_files import Golden, VitHGolden, mask_iou, relative_error

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
sys.path.insert(0, str(ROOT))
BARS = {"embedding": 2e-4, "iou": 1e-3, "mask_iou": 0.999, "vit_h_logits": 1e-3, "encoder": 1e-5,
        "bfloat16_mask_iou": 0.98}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--vith-decoder", type=Path)
    parser.add_argument("--mobile-sam", default="mobile_sam", help="a path, or fetched")
    parser.add_argument("--lite-medsam", default="lite_medsam", help="a path, or fetched")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "parity.json")
    args = parser.parse_args()
    record = {"bars": BARS, "predictions": predictions(args), "encoders": encoders()}
    if args.vith_decoder:
        record["vit_h_decoder"] = vit_h_decoder(args)
    record["worst"] = worst(record)
    record |= {"versions": peers.versions(), "commit": commit()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["worst"], indent=1))


def predictions(args) -> list[dict]:
    """A row for each prompt of each photograph."""
    cases = [("mobile_sam", ROOT / "examples" / "coffee.jpg", DATA / "mobilesam_coffee.npz")]
    if args.reference:
        images, golden = args.reference / "images", args.reference / "golden"
        cases += [("mobile_sam", images / f"{name}.jpg", golden / f"mobilesam_{name}.npz")
                  for name in ("truck", "dog", "groceries")]
        cases.append(("lite_medsam", images / "dog.jpg", golden / "litemedsam_dog.npz"))
    import samjax

    rows, models = [], {}
    for model, image, path in cases:
        if model not in models:
            source = getattr(args, model)
            models[model] = [samjax.load(source, dtype=dtype) for dtype in ("float32", "bfloat16")]
        rows += compare(model, models[model], image, Golden(path))
    return rows


def compare(model: str, sams, image: Path, golden: Golden) -> list[dict]:
    embeddings = [sam.encode(image) for sam in sams]
    error = golden.embedding_error(embeddings[0].features)
    exact, rough = (golden.segment(sam, embedding) for sam, embedding in zip(sams, embeddings))
    rows = []
    for name in exact:
        ious, same = mask_iou(exact[name].masks, rough[name].masks), exact[name].masks.any((-1, -2))
        counted = ious[same | rough[name].masks.any((-1, -2))]
        row = {"model": model, "image": image.name, "prompt": name, "embedding": error,
               **golden.errors(name, exact[name]),
               "bfloat16_mask_iou": float(counted.min()) if counted.size else None}
        rows.append(row)
        print(f"{model:12} {image.name:14} {name:20} embedding {error:.1e}  iou {row['iou']:.1e}  "
              f"logits {row['logits']:.1e}  mask IoU {row['mask_iou']:.5f}  bfloat16 "
              + (f"{row['bfloat16_mask_iou']:.4f}" if counted.size else "(empty)"), flush=True)
    return rows


def encoders() -> list[dict]:
    """Random-weight ViT encoders in float32."""
    import jax

    from samjax import encode_image

    rows = []
    for name in ("vit_toy_random", "vit_b_random", "vit_h_d4_random"):
        golden = np.load(DATA / f"{name}.npz")
        config, params, pixels = random_encoder(golden)
        features = jax.jit(partial(encode_image, config))(params, pixels)
        chosen = tuple(slice(None, None, n) for n in golden["output_stride"][-3:])
        error = relative_error(features.transpose(0, 3, 1, 2)[:, *chosen], golden["output_f32"])
        rows.append({"encoder": name, "error": error})
        print(f"{name:20} {error:.1e}", flush=True)
    return rows


def random_encoder(golden):
    """(config, params, pixels) of a golden file: every tensor drawn from its official name and the file's seed."""
    from convert.model import nest
    from convert.table import KINDS
    from convert.table import rows as table
    from samjax.config import SamConfig, ViT

    width, depth, heads, global_blocks, size, window = json.loads(str(golden["config"]))
    config = SamConfig("custom", ViT(width, depth, heads, tuple(global_blocks), window), image_size=(size, size))
    seed, flat = int(golden["weight_seed"]), {}
    names = json.loads(str(golden["param_names"]))
    for row in table(config):
        if row.official.startswith("image_encoder."):
            name = row.official.removeprefix("image_encoder.")
            if tuple(names.pop(name)) != row.torch_shape:
                raise ValueError(f"{name} has another shape in the golden file")
            flat[row.path] = np.ascontiguousarray(KINDS[row.kind].to_jax(
                peers.seeded_tensor(name, row.torch_shape, seed)))
    if names:
        raise ValueError(f"the golden file has other tensors: {sorted(names)}")
    generator = np.random.Generator(np.random.PCG64(int(golden["input_seed"])))
    pixels = generator.standard_normal((1, 3, size, size), dtype=np.float32).transpose(0, 2, 3, 1)
    return config, nest(flat), pixels


def vit_h_decoder(args) -> list[dict]:
    """The real ViT-H decoder in float32, and its masks in bfloat16 (at low resolution)."""
    import jax
    from vith_decoder import read_tensors

    from convert.model import nest
    from convert.table import KINDS
    from convert.table import rows as table
    from samjax import decode_masks
    from samjax.config import VIT_H

    tensors = read_tensors(args.vith_decoder)
    params = nest({row.path: np.ascontiguousarray(KINDS[row.kind].to_jax(tensors[row.official]))
                   for row in table(VIT_H) if row.official in tensors})
    decode = jax.jit(decode_masks, static_argnums=0)
    folder = args.reference / "golden" if args.reference else DATA
    rows = []
    for name in ("slick", "burn_scar"):
        if not (folder / f"vith_decoder_{name}.npz").exists():
            continue
        golden = VitHGolden(folder / f"vith_decoder_{name}.npz")
        for prompt in golden.names:
            exact, rough = (decode(replace(VIT_H, dtype=dtype), params, golden.features, golden.slots(prompt))
                            for dtype in ("float32", "bfloat16"))
            ious = mask_iou(*(np.asarray(m.logits)[0, 0] > 0 for m in (exact, rough)))  # the single mask first
            row = {"embedding": name, "prompt": prompt, **golden.errors(prompt, exact),
                   "bfloat16_mask_iou": float(ious.min()), "bfloat16_mask_ious": ious.tolist()}
            rows.append(row)
            print(f"ViT-H decoder  {name:10} {prompt:15} iou {row['iou']:.1e}  logits {row['logits']:.1e}  bfloat16 "
                  f"{row['bfloat16_mask_iou']:.4f}", flush=True)
    return rows


def worst(record: dict) -> dict:
    """The worst of each number, to hold against the bars."""
    rows = record["predictions"]
    found = {key: max(row[key] for row in rows) for key in ("embedding", "iou", "logits")}
    found["mask_iou"] = min(row["mask_iou"] for row in rows)
    found["bfloat16_mask_iou"] = min(row["bfloat16_mask_iou"] for row in rows if row["bfloat16_mask_iou"] is not None)
    found["encoder"] = max(row["error"] for row in record["encoders"])
    if "vit_h_decoder" in record:
        found["vit_h_logits"] = max(row["logits"] for row in record["vit_h_decoder"])
        found["vit_h_iou"] = max(row["iou"] for row in record["vit_h_decoder"])
        for key, masks in (("single", slice(0, 1)), ("alternative", slice(1, None))):
            found[f"vit_h_bfloat16_{key}_mask_iou"] = min(
                min(row["bfloat16_mask_ious"][masks]) for row in record["vit_h_decoder"])
    return found


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip()


if __name__ == "__main__":
    main()
