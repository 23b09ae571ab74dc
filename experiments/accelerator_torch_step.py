"""A training step of SAM in PyTorch, as one would write it around the official modules: what samjax's is timed beside.

The same work: bfloat16 by autocast; an encoder with its gradient; for each object eleven rounds of a click in the error
region, three masks first, one after that; focal and dice loss on the logits' grid and the IoU's error; each round's
gradient taken at once, the features' added up and sent through the encoder at the end; fused AdamW. The encoder is the
official one or, "sdpa", that of `transformers`; "+compile" compiles encoder and decoder.
"""

import peers
import torch
from torch.nn import functional


class TrainStep:
    def __init__(self, name, batch, objects, way, remat, rounds, device):
        kind, _, self.compiled = way.partition("+")
        self.model = peers.official_sam(name).to(device).train()
        self.encoder = peers.transformers_encoder(name).to(device).train() if kind == "sdpa" else (
            self.model.image_encoder)
        if remat and kind != "sdpa":
            raise ValueError("only the encoder of transformers can be checkpointed")
        if kind == "sdpa":
            del self.model.image_encoder
            if remat:
                self.encoder.gradient_checkpointing_enable()
        self.encode, self.decode = self.encoder, self.model.mask_decoder
        if self.compiled:
            self.encode, self.decode = torch.compile(self.encoder), torch.compile(self.model.mask_decoder)
        parameters = {p for part in (self.encoder, self.model) for p in part.parameters()}
        self.optimiser = torch.optim.AdamW(parameters, 1e-5, weight_decay=0.1, fused=device.type == "cuda")
        self.rounds, self.device = rounds, device
        torch.manual_seed(0)
        self.pixels = torch.randn((batch, 3, 1024, 1024))
        y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
        centres = 40 + 176 * torch.rand((batch, objects, 2, 1, 1))
        radii = 10 + 54 * torch.rand((batch, objects, 1, 1))
        self.masks = (torch.hypot(y - centres[:, :, 0], x - centres[:, :, 1]) < radii)

    def __call__(self):
        with torch.autocast(self.device.type, torch.bfloat16):
            features = self._features()
            held = features.detach().requires_grad_()
            total = sum(self._play(held[i:i + 1], self.masks[i]) for i in range(len(held)))
        features.backward(held.grad)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _features(self):
        out = self.encode(self.pixels)
        return out if isinstance(out, torch.Tensor) else out[0]

    def _play(self, features, masks):
        """All rounds for the objects (n, 256, 256) of one picture."""
        n = len(masks)
        points, labels = self._click(masks), torch.ones((n, 1), dtype=torch.int64, device=self.device)
        points, fed, total = points[:, None], None, 0.0
        for i in range(self.rounds):
            sparse, dense = self.model.prompt_encoder(points=(points, labels), boxes=None, masks=fed)
            logits, iou = self.decode(
                image_embeddings=features, image_pe=self.model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=i == 0)
            loss, fed = judge(logits.float(), iou.float(), masks)
            (loss / (self.rounds * self.masks.shape[0] * n)).backward()
            total = total + loss.detach()
            if i < self.rounds - 3:  # the last two rounds bring no new point
                error = (fed[:, 0] > 0) != masks
                point = self._click(error)
                cell = (point / 4).long()
                label = masks[torch.arange(n, device=self.device), cell[:, 1], cell[:, 0]].long()
                points, labels = torch.cat([points, point[:, None]], 1), torch.cat([labels, label[:, None]], 1)
        return total

    def _click(self, region):
        """(n, 2) pixels drawn uniformly from regions (n, 256, 256)."""
        lots = torch.rand(region.shape, device=self.device) * region
        where = lots.flatten(1).argmax(1)
        return torch.stack([where % 256, where // 256], 1) * 4.0 + 2.0


def judge(logits, iou, masks):
    """The losses of (n, m, 256, 256) logits, of each object's best mask; and the most confident one's logits."""
    truth = masks[:, None].expand_as(logits).float()
    p = logits.sigmoid()
    right = torch.where(truth > 0, p, 1 - p)
    alpha = torch.where(truth > 0, 0.25, 0.75)
    cross = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = (alpha * (1 - right) ** 2 * cross).mean((2, 3))
    dice = 1 - (2 * (p * truth).sum((2, 3)) + 1) / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    with torch.no_grad():
        hit = (logits > 0) & (truth > 0)
        real = hit.sum((2, 3)) / ((logits > 0) | (truth > 0)).sum((2, 3)).clamp(min=1)
    each = 20 * focal + dice
    best = each.argmin(1, keepdim=True)
    loss = (each.gather(1, best) + (iou - real).square().gather(1, best)).sum()
    chosen = iou.argmax(1)
    return loss, logits.detach()[torch.arange(len(logits), device=logits.device), chosen][:, None]
