"""What experiments/accelerator.py times of PyTorch: the official code, `transformers` with SDPA, torch.compile.

The training step is that of accelerator_torch_step.py. Weights are random; the official generator's are MobileSAM's.
"""

import gc

import numpy as np
import peers
import torch
from accelerator_torch_step import TrainStep
from accelerator_worker import Subject, serve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_tensor(*shape, scale=1.0, seed=0):
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape, np.float32)).to(DEVICE)


def inference(call, images, work=0.0):
    def run():
        with torch.inference_mode():
            return call()
    return Subject(run, images, work)


def matmul(dtype="bfloat16", side=8192):
    a, b = (random_tensor(side, side, seed=seed).to(DTYPES[dtype]) for seed in (0, 1))
    return inference(lambda: a @ b, 1, 2.0 * side**3)


def encoder(name, way, batch=1, dtype="bfloat16"):
    """way: "official", "sdpa" (transformers), either with "+compile"."""
    kind, _, compiled = way.partition("+")
    with DEVICE:  # random weights are drawn there
        model = _encoder(kind, name)
    model = model.to(DTYPES[dtype]).eval()
    x = random_tensor(batch, 3, 1024, 1024).to(DTYPES[dtype])
    run = torch.compile(model) if compiled else model
    return inference(lambda: run(x), batch)


def _encoder(kind, name):
    if name == "mobile_sam":
        return peers.official_mobile_sam().image_encoder
    return peers.official_sam(name).image_encoder if kind == "official" else peers.transformers_encoder(name)


def decoder(n, way="official", dtype="float32"):
    model = peers.official_sam("vit_b", depth=1).to(DEVICE)
    points = np.random.default_rng(2).uniform(0, 1024, (n, 1, 2)).astype(np.float32)
    coords, features = torch.from_numpy(points).to(DEVICE), random_tensor(1, 256, 64, 64, scale=0.1)
    labels = torch.ones((n, 1), dtype=torch.int64, device=DEVICE)
    decode = torch.compile(model.mask_decoder) if way.endswith("+compile") else model.mask_decoder

    def call():
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            sparse, dense = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
            return decode(image_embeddings=features, image_pe=model.prompt_encoder.get_dense_pe(),
                          sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True)
    return inference(call, n)


class _Stand(torch.nn.Module):
    """An encoder whose work is done and whose features are replaced by given ones."""

    def __init__(self, encoder, real, dtype):
        super().__init__()
        self.encoder, self.real, self.dtype, self.img_size = encoder, real, dtype, 1024

    def forward(self, x):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return self.real + 0.0 * self.encoder(x).float()


def everything(image, name="vit_h", dtype="bfloat16"):
    """As accelerator_jax.everything: the official generator, the ViT's features replaced by MobileSAM's real ones."""
    from PIL import Image

    from samjax.weights import resolve

    model = peers.official_mobile_sam(str(resolve("mobile_sam"))).to(DEVICE)
    pixels = np.array(Image.open(image).convert("RGB"))
    predictor = peers.official_predictor(model)
    with torch.inference_mode():
        predictor.set_image(pixels)
        real = predictor.get_image_embedding().clone()
        with DEVICE:
            encoder = peers.official_sam(name).image_encoder
        model.image_encoder = _Stand(encoder, real, dtype)
    generator = peers.official_generator(model)
    return inference(lambda: len(generator.generate(pixels)), 1)


def train(name, batch, objects, way="official", remat=False, rounds=11):
    with DEVICE:
        step = TrainStep(name, batch, objects, way, remat, rounds, DEVICE)
    return Subject(step, batch, 0.0)


def wait(_):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak():
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else 0.0


def forget():
    gc.collect()
    torch.compiler.reset()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


MAKERS = {"matmul": matmul, "encoder": encoder, "decoder": decoder, "everything": everything, "train": train}

if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")  # as samjax multiplies float32
    about = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"}
    serve(MAKERS, wait, peak, forget, about)
