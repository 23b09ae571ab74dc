"""What experiments/speed.py times: for each case and subject a function that does the work once.

As a script it is one subject in a process of its own, driven over pipes:

    python experiments/speed_subjects.py CASE SUBJECT THREADS IMAGE

It warms up, says {"ready": ...} and then answers each line `N` on stdin with the seconds of N calls, and
`peak` with its peak memory.
"""

import contextlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

SIZE, GRID = 1024, 64
LONG = 60  # seconds: a call that lasts longer is not repeated to warm up


def torch_device():
    """The CUDA device if PyTorch sees one, else the CPU; and a function that waits for it."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda"), torch.cuda.synchronize
    return torch.device("cpu"), lambda: None


def torch_call(build):
    """`build(device)` -> function; called without gradients, waited for."""
    import torch

    device, wait = torch_device()
    function = build(device)

    def call():
        with torch.inference_mode():
            function()
        wait()
    return call


def jax_call(function, *arguments):
    """A jitted call with its arguments on the device, waited for."""
    import jax

    arguments = jax.device_put(arguments)
    return lambda: jax.block_until_ready(function(*arguments))


def pixels(channels_last):
    """(1, 1024, 1024, 3) or (1, 3, 1024, 1024) normalised pixels."""
    import numpy as np

    x = np.random.default_rng(0).standard_normal((1, SIZE, SIZE, 3)).astype(np.float32)
    return x if channels_last else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def embedding(channels_last):
    """(1, 64, 64, 256) or (1, 256, 64, 64) features."""
    import numpy as np

    x = 0.1 * np.random.default_rng(1).standard_normal((1, GRID, GRID, 256)).astype(np.float32)
    return x if channels_last else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def points(n):
    """(n, 1, 2) foreground points in pixels of the 1024 x 1024 input."""
    import numpy as np

    return np.random.default_rng(2).uniform(0, SIZE, (n, 1, 2)).astype(np.float32)


def padded_points(n):
    """Points (n, 2, 2) and labels (n, 2) with the padding point that official SAM appends by itself."""
    import numpy as np

    coords = np.concatenate([points(n), np.zeros((n, 1, 2), np.float32)], axis=1)
    return coords, np.tile(np.array([1, -1], np.int32), (n, 1))


# Encoders: normalised pixels -> features.

def encoder_official(bundle):
    import peers
    import torch

    def build(device):
        model = peers.official_mobile_sam() if bundle == "mobile" else peers.official_sam("vit_b")
        encoder, x = model.image_encoder.to(device), torch.from_numpy(pixels(False)).to(device)
        return lambda: encoder(x)
    return torch_call(build)


def encoder_transformers(_):
    import peers
    import torch

    def build(device):
        model, x = peers.transformers_sam().to(device), torch.from_numpy(pixels(False)).to(device)
        return lambda: model.get_image_embeddings(x)
    return torch_call(build)


def encoder_keras_hub(_):
    import peers
    encoder = peers.keras_hub_sam()[0]
    import jax

    variables = [[v.value for v in group] for group in (encoder.trainable_variables,
                                                         encoder.non_trainable_variables)]
    return jax_call(jax.jit(lambda state, x: encoder.stateless_call(*state, x)[0]), variables, pixels(True))


def samjax_config(bundle, dtype):
    """The config of a case at a dtype."""
    import dataclasses

    import samjax.config

    config = samjax.config.VIT_T if bundle == "mobile" else samjax.config.VIT_B
    return dataclasses.replace(config, dtype=dtype)


def samjax_params(config):
    """Random parameters made by NumPy, so that the process holds what one that reads weights does: no program that
    draws them stays in memory."""
    import functools

    import jax
    import numpy as np

    import samjax

    random = np.random.default_rng(3)

    def draw(path, leaf):
        z = np.float32(0.02) * random.standard_normal(leaf.shape, np.float32)
        return 1 + z if path[-1].key == "scale" else z

    shapes = jax.eval_shape(functools.partial(samjax.init, config), jax.random.key(0))
    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def encoder_samjax(bundle, dtype="float32"):
    import functools

    import jax

    import samjax

    config = samjax_config(bundle, dtype)
    params = samjax_params(config)
    return jax_call(jax.jit(functools.partial(samjax.encode_image, config)), params, pixels(True))


# Decoders: features and n prompts of one point -> three low-resolution masks each.

def decoder_official(n):
    import peers
    import torch

    def build(device):
        model = peers.official_sam("vit_b", depth=1).to(device)
        features, coords = (torch.from_numpy(x).to(device) for x in (embedding(False), points(n)))
        labels = torch.ones((n, 1), dtype=torch.int64, device=device)

        def run():
            sparse, dense = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
            return model.mask_decoder(
                image_embeddings=features, image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True)
        return run
    return torch_call(build)


def decoder_transformers(n):
    import peers
    import torch

    def build(device):
        model = peers.transformers_sam().to(device)
        features, coords = (torch.from_numpy(x).to(device) for x in (embedding(False), points(n)[None]))
        labels = torch.ones((1, n, 1), dtype=torch.int64, device=device)
        return lambda: model(image_embeddings=features, input_points=coords, input_labels=labels,
                             multimask_output=True)
    return torch_call(build)


def decoder_keras_hub(n):
    import peers
    _, prompts, decoder = peers.keras_hub_sam()
    import jax

    state = [([v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables])
             for layer in (prompts, decoder)]

    @jax.jit
    def run(state, features, coords, labels):
        encoded, _ = prompts.stateless_call(*state[0], points=coords, labels=labels.astype("float32"))
        return decoder.stateless_call(*state[1], image_embeddings=features, **encoded)[0]
    return jax_call(run, state, embedding(True), *padded_points(n))


def decoder_samjax(n, dtype="float32"):
    import functools

    import jax

    import samjax

    config = samjax_config("mobile", dtype)  # the smallest encoder: only the decoder is called
    params = samjax_params(config)
    coords, labels = padded_points(n)
    prompts = samjax.Prompts(coords[None], labels[None])
    return jax_call(jax.jit(functools.partial(samjax.decode_masks, config)), params, embedding(True), prompts)


# End to end: from a JPEG file to the embedding in memory, MobileSAM.

def file_official(image):
    import numpy as np
    import peers
    from PIL import Image

    def build(device):
        predictor = peers.official_predictor(peers.official_mobile_sam().to(device))
        return lambda: predictor.set_image(np.array(Image.open(image).convert("RGB")))
    return torch_call(build)


def random_sam():
    import samjax

    config = samjax_config("mobile", "float32")
    return samjax.Sam(config, samjax_params(config))


def file_samjax(image):
    sam = random_sam()
    return lambda: sam.encode(image).features.block_until_ready()


# A click: one point on an encoded picture -> three boolean masks of the picture's size on the host.

def click_official(image):
    import numpy as np
    import peers
    from PIL import Image

    def build(device):
        predictor = peers.official_predictor(peers.official_mobile_sam().to(device))
        predictor.set_image(np.array(Image.open(image).convert("RGB")))
        return lambda: predictor.predict(np.array([[50.0, 50.0]]), np.array([1]))
    return torch_call(build)


def click_samjax(image):
    sam = random_sam()
    embedding = sam.encode(image)
    return lambda: sam.segment(embedding, points=[[50, 50]], labels=[1])


# All masks of a picture, real MobileSAM weights (what survives the filters decides the work).

PAPER = {"points_per_side": 32, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 100}


def everything_official(image, **settings):
    import numpy as np
    import peers
    from PIL import Image

    from samjax.weights import resolve

    def build(device):
        model = peers.official_mobile_sam(str(resolve("mobile_sam"))).to(device)
        generator = peers.official_generator(model, **settings)
        pixels = np.array(Image.open(image).convert("RGB"))
        return lambda: generator.generate(pixels)
    return torch_call(build)


def everything_samjax(image, **settings):
    import samjax

    sam, pixels = samjax.load("mobile_sam"), samjax.read_image(image)
    return lambda: sam.everything(pixels, **settings)


CASES = {  # case: (argument of the subjects, {subject: maker}); IMAGE stands for the picture given
    "encoder_vit_b": ("vit_b", {"official": encoder_official, "transformers": encoder_transformers,
                                "keras_hub": encoder_keras_hub, "samjax": encoder_samjax}),
    "encoder_mobile": ("mobile", {"official": encoder_official, "samjax": encoder_samjax}),
    "decoder_1": (1, {"official": decoder_official, "transformers": decoder_transformers,
                      "keras_hub": decoder_keras_hub, "samjax": decoder_samjax}),
    "decoder_64": (64, {"official": decoder_official, "transformers": decoder_transformers,
                        "keras_hub": decoder_keras_hub, "samjax": decoder_samjax}),
    "encode_jpeg": ("IMAGE", {"official": file_official, "samjax": file_samjax}),
    "click": ("IMAGE", {"official": click_official, "samjax": click_samjax}),
    "everything": ("IMAGE", {"official": everything_official, "samjax": everything_samjax}),
    "everything_paper": ("IMAGE", {"official": partial(everything_official, **PAPER),
                                   "samjax": partial(everything_samjax, preset="paper")}),
}
BFLOAT16 = "_bf16"  # a subject's name with this ending is samjax in bfloat16


def make(case, subject, image):
    """The function that does the work of one case once."""
    argument, makers = CASES[case]
    argument = image if argument == "IMAGE" else argument
    if subject.endswith(BFLOAT16):
        return makers[subject.removesuffix(BFLOAT16)](argument, dtype="bfloat16")
    return makers[subject](argument)


def peak_megabytes():
    """The most memory that this process has held (MB): VmHWM, which unlike ru_maxrss knows no parent."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def forget_peak():
    """Let VmHWM start again from what is held now (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def limit_threads(threads, subject):
    """Bind this process to as many cores, which every library heeds; call it before importing any."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if subject in ("official", "transformers"):
        import torch

        torch.set_num_threads(threads)


def serve(case, subject, threads, image):
    """Answer on stdout; whatever the libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values):
        answers.write(json.dumps(values) + "\n")

    try:
        limit_threads(threads, subject)
        call = make(case, subject, image)
        start = time.perf_counter()
        call()
        first = time.perf_counter() - start
    except Exception as error:  # a missing or broken peer is reported, the others are still measured
        answer(missing=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    if first < LONG:
        call()
    process_peak = peak_megabytes()
    forget_peak()
    answer(ready=True, first=first)
    for line in sys.stdin:
        if line.strip() == "peak":
            answer(process=max(process_peak, peak_megabytes()), call=peak_megabytes())
            continue
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        answer(seconds=seconds)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
