"""The shortest PyTorch program that does what `samjax segment` does for one point; speed.py times it.

    python experiments/torch_segment.py IMAGE X Y OUT mobile_sam.pt [--lean]

It writes STEM_mask_K.png, STEM_overlay.png and STEM.json. `--lean` replaces timm, of which MobileSAM uses
three helpers that are idle at inference, by empty ones: its import takes as long as PyTorch's own.
"""

import json
import sys
import types
from pathlib import Path

COLOURS = ((230, 60, 60), (60, 160, 230), (90, 200, 90))


def main(image_path, x, y, out, checkpoint, *options):
    if "--lean" in options:
        install_lean_timm()
    import numpy as np
    import peers
    from PIL import Image

    image = np.array(Image.open(image_path).convert("RGB"))
    predictor = peers.official_predictor(peers.official_mobile_sam(checkpoint))
    predictor.set_image(image)
    masks, iou, _ = predictor.predict(np.array([[float(x), float(y)]]), np.array([1]))
    stem, out = Path(image_path).stem, Path(out)
    out.mkdir(parents=True, exist_ok=True)
    overlay = image.astype(np.float32)
    for k, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(out / f"{stem}_mask_{k}.png")
        overlay[mask] = 0.5 * overlay[mask] + 0.5 * np.array(COLOURS[k], np.float32)
    Image.fromarray(overlay.astype(np.uint8)).save(out / f"{stem}_overlay.png")
    (out / f"{stem}.json").write_text(json.dumps({"predicted_iou": iou.tolist()}))


def install_lean_timm():
    """A `timm` that holds only the names MobileSAM imports."""
    import torch

    layers = {"DropPath": torch.nn.Identity, "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
              "trunc_normal_": torch.nn.init.trunc_normal_}
    for name, names in {"timm": {}, "timm.models": {}, "timm.models.layers": layers,
                        "timm.models.registry": {"register_model": lambda function: function}}.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        sys.modules[name] = module


if __name__ == "__main__":
    main(*sys.argv[1:])
