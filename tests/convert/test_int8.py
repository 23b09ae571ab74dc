"""Files of int8 weights: a quarter of the size, the same model back, as strict as others."""

import json
import struct

import numpy as np
import pytest
from conftest import SMALL_TINY, SMALL_VIT, random_params

import convert
import samjax
from convert.model import Model, flatten
from convert.safetensors import read_safetensors, write_safetensors
from convert.tensor import Tensor
from convert.torch_file import read_torch
from samjax.bulk import Bulk
from samjax.cli import main
from samjax.errors import InputError
from samjax.model.quantise import dequantise, is_quantised, quantise

CONFIGS = {"vit": SMALL_VIT, "tiny": SMALL_TINY}


@pytest.fixture(scope="module", params=CONFIGS)
def files(request, tmp_path_factory):
    """(folder with whole.safetensors, int8.safetensors and int8/, the model's tree)."""
    folder, config = tmp_path_factory.mktemp(request.param), CONFIGS[request.param]
    params = random_params(config)
    model = Model(config, {path: Tensor.of(x) for path, x in flatten(params).items()})
    convert.write(folder / "whole.safetensors", model)
    for name in ("int8.safetensors", "int8"):
        convert.convert(folder / "whole.safetensors", folder / name, int8=True)
    return folder, params


@pytest.fixture(params=["int8.safetensors", "int8"])
def held(files, request):
    return files[0] / request.param, files[1]


def test_a_file_holds_what_quantise_gives(held):
    path, params = held
    found, expected = convert.read(path), flatten(dequantise(quantise(params)))
    assert found.int8
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor.load(), expected[name], err_msg=name)


def test_loading_gives_int8_again(held):
    path, params = held
    sam, other = samjax.load(path), samjax.load(path.parent / "whole.safetensors", int8=True)
    found, expected = flatten(sam.params), flatten(other.params)
    assert found.keys() == expected.keys()
    quantised = [name for name, leaf in found.items() if is_quantised(leaf)]
    assert quantised == [name for name, leaf in expected.items() if is_quantised(leaf)] != []
    for name in quantised:
        np.testing.assert_array_equal(found[name].values, expected[name].values)
        np.testing.assert_allclose(found[name].scale, expected[name].scale, rtol=1e-6)


def test_sizes_and_types(files):
    folder, _ = files
    tensors = read_safetensors(folder / "int8.safetensors")
    small = {name: tensor for name, tensor in tensors.items() if tensor.dtype == np.int8}
    assert small
    for name, tensor in small.items():
        scale = tensors[f"{name}_scale"]
        assert scale.dtype == np.float32 and len(scale.shape) == len(tensor.shape)
        assert scale.size < tensor.size / 3
    numbers = sum(tensor.size for tensor in small.values())
    scales = sum(tensors[f"{name}_scale"].size for name in small)
    saved = (folder / "whole.safetensors").stat().st_size - (folder / "int8.safetensors").stat().st_size
    assert abs(saved - (3 * numbers - 4 * scales)) < 0.1 * saved  # a byte for each number in place of four; and names


def test_float32_comes_out_where_int8_is_not_asked_for(held, tmp_path):
    path, params = held
    convert.convert(path, tmp_path / "model.pth")
    tensors = read_torch(tmp_path / "model.pth")
    assert not any(name.endswith("_scale") for name in tensors)
    assert {tensor.dtype.name for tensor in tensors.values()} <= {"float32", "int64"}
    found, expected = convert.read(tmp_path / "model.pth"), flatten(dequantise(quantise(params)))
    assert not found.int8
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor.load(), expected[name], err_msg=name)


def test_a_tree_of_int8_weights_is_written_as_the_float32_it_stands_for(files, tmp_path):
    folder, params = files
    stored = convert.read(folder / "whole.safetensors")
    leaves = flatten(quantise(params))
    convert.write(tmp_path / "x.safetensors", Model(stored.config, {n: Tensor.of(x) for n, x in leaves.items()}))
    found = convert.read(tmp_path / "x.safetensors")
    name = next(name for name, leaf in leaves.items() if is_quantised(leaf))
    np.testing.assert_array_equal(found.tensors[name].load(), np.asarray(leaves[name]))


@pytest.mark.parametrize("target, more", [("x.pth", {}), ("x.pt", {}), ("x.safetensors", {"naming": "transformers"})])
def test_where_int8_does_not_go(files, tmp_path, target, more):
    with pytest.raises(InputError, match="int8 weights go into a .safetensors"):
        convert.convert(files[0] / "whole.safetensors", tmp_path / target, int8=True, **more)
    assert not list(tmp_path.iterdir())


def changed(files, tmp_path, change):
    """A copy of the int8 file whose dict of tensors was changed."""
    tensors = read_safetensors(files[0] / "int8.safetensors")
    change(tensors)
    write_safetensors(tmp_path / "x.safetensors", tensors)
    return tmp_path / "x.safetensors"


NAME = "mask_decoder.transformer.layers.0.mlp.lin1.weight"
FAULTS = {
    "missing": (lambda t: t.pop(f"{NAME}_scale"), f"missing {NAME}_scale"),
    "shape": (lambda t: t.update({f"{NAME}_scale": Tensor.of(np.ones((3, 1), np.float32))}), f"{NAME}_scale is "),
    "type": (lambda t: t.update({f"{NAME}_scale": Tensor.of(np.ones((64, 1), np.int32))}), "holds int32"),
    "lonely": (lambda t: t.update({"prompt_encoder.no_mask_embed.weight_scale": Tensor.of(np.float32([1]))}),
               "unknown prompt_encoder.no_mask_embed.weight_scale"),
    "wrong": (lambda t: t.update({"prompt_encoder.no_mask_embed.weight": Tensor.of(np.ones((1, 32), np.int8))}),
              "no_mask_embed.weight holds int8, not floating point numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_reading_stays_strict(files, tmp_path, fault):
    change, message = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        convert.read(changed(files, tmp_path, change))
    assert message in str(caught.value)


def test_a_scale_that_is_not_finite(files, tmp_path):
    bad = Tensor.of(np.full((64, 1), np.inf, np.float32))
    path = changed(files, tmp_path, lambda tensors: tensors.update({f"{NAME}_scale": bad}))
    with pytest.raises(InputError, match="holds NaN or infinity"):
        convert.read(path).params()


def test_nothing_is_trained(files):
    with pytest.raises(InputError, match="int8 weights cannot be trained"):
        samjax.load(files[0] / "int8.safetensors", train=True)
    with pytest.raises(InputError, match="int8 weights cannot be trained"):
        samjax.load(files[0] / "whole.safetensors", train=True, int8=True)


def test_fine_tuning_refuses_them_before_it_writes(files, tmp_path):
    from samjax.train.finetune import claim
    from samjax.train.options import Options

    with pytest.raises(InputError, match="int8 weights, which cannot be trained"):
        claim(Options(data=("data",), init="x", out=str(tmp_path / "out")), files[0] / "int8.safetensors", ["a"], False)
    assert not (tmp_path / "out").exists()


def test_jobs_with_int8_weights_are_others(tmp_path):
    model = {"name": "m", "architecture": "m", "sha256": "0", "dtype": "float32"}
    plain, held = (Bulk([], tmp_path, about) for about in (model, model | {"int8": True}))
    assert plain.key != held.key and set(plain.made_with) == {"sha256", "dtype", "store", "shard"}


def test_on_the_command_line(files, tmp_path, capsys):
    source, target = files[0] / "whole.safetensors", tmp_path / "small.safetensors"
    assert main(["convert", str(source), str(target), "--int8"]) == 0
    assert target.read_bytes() == (files[0] / "int8.safetensors").read_bytes()
    size, = struct.unpack("<Q", target.read_bytes()[:8])
    assert {entry["dtype"] for entry in json.loads(target.read_bytes()[8:8 + size]).values()
            if "dtype" in entry} <= {"I8", "F32", "I64"}
    capsys.readouterr()
    assert main(["convert", str(source), str(tmp_path / "small.pth"), "--int8"]) == 2
    assert "int8 weights go into" in capsys.readouterr().err
