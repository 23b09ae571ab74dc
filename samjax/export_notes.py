"""The README of an exported folder."""

from collections.abc import Mapping

STABLEHLO = """\
# {model}: encoder and decoder as StableHLO, for {platforms}, computing in {dtype}

They need `pip install jax flatbuffers`, and not samjax, which wrote them:

    python load.py PICTURE MASK.png X,Y      # or import load, segment from it

| file | what it is |
|---|---|
| `encoder.stablehlo`, `decoder.stablehlo` | `jax.export.deserialize(bytearray(...)).call(weights, *inputs)` |
| `encoder.npz`, `decoder.npz` | their weights: `dict(numpy.load(...))` |

Each new set of numbers of pictures `b`, objects `n` and slots `t` (from 1) compiles. JAX reads programs for six months
after the release that wrote them ({jax}): keep the model, and export it again.
"""

ONNX = """\
# {model}: encoder and decoder as ONNX, computing in {dtype}

    encoder, decoder = map(onnxruntime.InferenceSession, ("encoder.onnx", "decoder.onnx"))
    features, = encoder.run(None, {{"pixels": pixels, "sizes": sizes}})
    logits, iou = decoder.run(None, {{"features": features, "points": points, ...}})

Pictures `b` and objects `n` may be any numbers from 1; there are {slots} slots, the unused with label -2.
"""

BOTH = """
A picture is resized to fit {w} x {h} pixels (width x height), proportions kept, sides rounded half up, by {resize},
and put at the top left of a black frame, uint8; the encoder normalises it. Points are pixels of that frame, x before y.
Masks are logits over the whole frame: enlarge them to it, crop the picture's part, resize that to the picture, take
what is above 0. `manifest.json` names every input and output with type and shape, sizes, labels, versions, sha256.
"""

RESIZE = {"bilinear": "antialiased bilinear (Pillow's BILINEAR)",
          "area": "means over areas (Pillow's BOX), or bilinear where it grows"}


def notes(manifest: Mapping) -> str:
    """Markdown that says how to use what `manifest` describes."""
    h, w = manifest["image_size"]
    values = {**manifest, "platforms": ", ".join(manifest["platforms"]), "jax": manifest["versions"]["jax"], "h": h,
              "w": w, "resize": RESIZE[manifest["resize"]]}
    return ((ONNX if "slots" in manifest else STABLEHLO) + BOTH).format(**values)
