"""The ONNX programs in onnxruntime beside samjax."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import random_params
from test_export import TINY, make_inputs

import convert
import samjax
from convert.model import stored_form
from convert.tensor import Tensor
from samjax.predict import normalise


@pytest.mark.slow
@pytest.mark.onnx
def test_equal_to_samjax(tmp_path):
    """Two numbers of pictures and of objects. Converted in a process of its own: jax2onnx changes jax.numpy."""
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    stored = stored_form(TINY)
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(random_params(stored)).items()}
    convert.write(tmp_path / "model", convert.Model(stored, tensors))
    words = ["export", tmp_path / "model", tmp_path / "out", "--format", "onnx", "--slots", "4"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(Path(samjax.__file__).parents[1])
    done = subprocess.run([sys.executable, "-m", "samjax", *map(str, words)], env=environment, text=True,
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("custom, float32, for onnx: 4 files, ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "encoder.onnx", "decoder.onnx", "manifest.json", "README.md"}

    sam = samjax.load(tmp_path / "model")
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / "out" / f"{part}.onnx") for part in
                        ("encoder", "decoder"))
    for b, n in ((1, 2), (2, 1)):
        given = make_inputs(TINY, b, n, 4)
        prompts = {name: given[name] for name in ("points", "labels", "mask_logits", "has_mask")}
        pictures = {name: given[name] for name in ("pixels", "sizes")}
        expected = [samjax.encode_image(TINY, sam.params, normalise(TINY, *pictures.values())),
                    *jax.jit(samjax.decode_masks, static_argnums=0)(TINY, sam.params, given["features"],
                                                                    samjax.Prompts(**prompts))]
        found = encoder.run(None, pictures) + decoder.run(None, {"features": given["features"], **prompts})
        for value, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, right, rtol=0, atol=1e-5 * np.abs(right).max())
