"""Reading golden files of whole predictions, as tests/data/README.md describes them."""

import json

import numpy as np


class Golden:
    """One photograph's outputs of the official code."""

    def __init__(self, path):
        with np.load(path) as file:
            self.arrays = dict(file)
        self.prompts = json.loads(str(self.arrays["prompts"]))

    def embedding_error(self, features) -> float:
        """The largest error of features (1, h, w, c), relative to the largest value."""
        expected = self.arrays["embedding_f32_s4"]
        return relative_error(np.asarray(features).transpose(0, 3, 1, 2)[:, ::4, ::4, ::4], expected)

    def masks(self, name: str) -> np.ndarray:
        """bool (n, m, h, w)."""
        shape = self.arrays[f"{name}/masks_shape"]
        packed = self.arrays[f"{name}/masks_packed"]
        return np.unpackbits(packed, axis=-1, count=shape[-1] * shape[-2]).reshape(shape).astype(bool)

    def segment(self, sam, embedding) -> dict:
        """{prompt id: Segmentation} of all prompts, masks fed back as the official outputs had theirs."""
        found = {}
        for prompt in self.prompts:
            given = {}
            if "point_coords" in prompt:
                given |= dict(points=prompt["point_coords"], labels=prompt["point_labels"])
            if "box" in prompt or "boxes" in prompt:
                given["boxes"] = prompt.get("boxes", prompt.get("box"))
            if "mask_from" in prompt:
                before = found[prompt["mask_from"]]
                given["mask_logits"] = before.logits[0, before.best[0]]
            found[prompt["id"]] = sam.segment(embedding, **given, multimask=prompt["multimask_output"])
        return found

    def errors(self, name: str, found) -> dict:
        """{"iou": largest error of the predicted IoU, "logits": relative error, "mask_iou": least IoU of a mask}."""
        return {"iou": float(np.abs(found.iou - self.arrays[f"{name}/iou"]).max()),
                "logits": relative_error(found.logits[..., ::4, ::4], self.arrays[f"{name}/low_res_f32_s4"]),
                "mask_iou": float(mask_iou(found.masks, self.masks(name)).min())}


def relative_error(found, expected) -> float:
    """The largest error relative to the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of masks over the last two axes; 1 where both are empty."""
    assert a.shape == b.shape and a.dtype == b.dtype == bool
    union = (a | b).sum((-1, -2))
    return np.where(union, (a & b).sum((-1, -2)) / np.maximum(union, 1), 1.0)


class VitHGolden:
    """The real ViT-H decoder's outputs on one stored embedding; all four masks of each prompt."""

    def __init__(self, path):
        self.path = str(path)
        with np.load(path) as file:
            self.arrays = dict(file)
        self.names = sorted({key.split("/")[0] for key in self.arrays if key.endswith("/iou")})
        self.features = self.arrays["embedding_f16"].astype(np.float32).transpose(0, 2, 3, 1)

    def slots(self, name: str):
        """The prompt as samjax.Prompts of one image and one object."""
        import samjax

        at = lambda key: self.arrays[f"{name}/{key}"]
        mask = bool(at("has_mask_input")[0])
        logits = at("mask_input_f16").astype(np.float32).reshape(1, 1, 256, 256) if mask else np.zeros(
            (1, 1, 256, 256), np.float32)
        return samjax.Prompts(at("point_coords")[None], at("point_labels").astype(np.int32)[None], logits,
                              np.array([[mask]]))

    def errors(self, name: str, masks) -> dict:
        """{"iou": largest error, "logits": error relative to the largest logit}."""
        iou = np.abs(np.asarray(masks.iou)[0] - self.arrays[f"{name}/iou"]).max()
        logits = relative_error(np.asarray(masks.logits)[0, :, :, ::4, ::4], self.arrays[f"{name}/low_res_f32_s4"])
        return {"iou": float(iou), "logits": logits}
