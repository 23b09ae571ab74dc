"""Whole models through every file format and back, bit by bit; broken ones named tensor by tensor."""

import json
import shutil
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import SMALL_TINY, SMALL_VIT, random_params

import convert
from convert.model import Model, flatten, nest
from convert.safetensors import read_safetensors, write_safetensors
from convert.table import extras, rows
from convert.tensor import Tensor
from convert.torch_file import read_torch, write_torch
from samjax.config import VIT_T, Decoder, SamConfig, ViT
from samjax.errors import InputError
from samjax.model.resize import resize_positions
from samjax.model.sam import encode_image

EXTRAS_SEED = 9


def model_of(config, seed=0):
    """A Model with random data, extras included."""
    random = np.random.default_rng(EXTRAS_SEED)
    kept = {extra.official: Tensor.of((100 * random.standard_normal(extra.shape)).astype(extra.dtype))
            for extra in extras(config)}
    return Model(config, {path: Tensor.of(x) for path, x in flatten(random_params(config, seed)).items()}, kept)


@pytest.fixture(scope="module")
def vit():
    return model_of(SMALL_VIT)


@pytest.fixture(scope="module")
def tiny():
    return model_of(SMALL_TINY)


@pytest.fixture(scope="module")
def official(tmp_path_factory, vit, tiny):
    """Paths of official checkpoints: vit.pth, tiny.pth."""
    folder = tmp_path_factory.mktemp("official")
    for name, model in (("vit", vit), ("tiny", tiny)):
        convert.write(folder / f"{name}.pth", model)
    return folder


def data(tensors):
    return {name: tensor.load() for name, tensor in tensors.items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        assert (found[name].dtype, found[name].shape) == (expected[name].dtype, expected[name].shape), name
        assert found[name].tobytes() == expected[name].tobytes(), name


def read_any(path):
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)


# -- round trips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["orbax", "x.safetensors", "x.SAFETENSORS", "x.pt"])
@pytest.mark.parametrize("name", ["vit", "tiny"])
def test_round_trips_are_exact(official, tmp_path, name, between):
    start = official / f"{name}.pth"
    convert.convert(start, tmp_path / between)
    convert.convert(tmp_path / between, tmp_path / "back.pth")
    assert_same(data(read_torch(tmp_path / "back.pth")), data(read_torch(start)))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([between, "back.pth"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_transformers_naming_both_ways(official, tmp_path, suffix):
    convert.convert(official / "vit.pth", tmp_path / f"hf{suffix}", "transformers")
    names = set(read_any(tmp_path / f"hf{suffix}"))
    assert "vision_encoder.layers.0.attn.qkv.weight" in names and not any("image_encoder" in name for name in names)
    convert.convert(tmp_path / f"hf{suffix}", tmp_path / "back.pth")
    assert_same(data(read_torch(tmp_path / "back.pth")), data(read_torch(official / "vit.pth")))


def test_transformers_files_may_hold_the_tied_matrix_twice(official, tmp_path):
    convert.convert(official / "vit.pth", tmp_path / "hf.safetensors", "transformers")
    tensors = read_safetensors(tmp_path / "hf.safetensors")
    tensors["prompt_encoder.shared_embedding.positional_embedding"] = tensors[
        "shared_image_embedding.positional_embedding"]
    write_safetensors(tmp_path / "tied.safetensors", tensors)
    assert_same(flatten(convert.read(tmp_path / "tied.safetensors").params()),
                flatten(convert.read(official / "vit.pth").params()))


def test_transformers_naming_needs_a_vit_and_a_file(vit, tiny, tmp_path):
    with pytest.raises(InputError, match="transformers has no model like"):
        convert.write(tmp_path / "x.safetensors", tiny, "transformers")
    with pytest.raises(InputError, match="only"):
        convert.write(tmp_path / "x", vit, "transformers")
    with pytest.raises(InputError, match="none of official, transformers"):
        convert.write(tmp_path / "x.pth", vit, "huggingface")
    assert not list(tmp_path.iterdir())


def test_files_are_deterministic(vit, official, tmp_path):
    convert.write(tmp_path / "again.pth", vit)
    assert (tmp_path / "again.pth").read_bytes() == (official / "vit.pth").read_bytes()


@pytest.mark.weights
def test_the_published_file_survives(mobile_sam_path, tmp_path):
    for between in ("orbax", "x.safetensors"):
        model = convert.convert(mobile_sam_path, tmp_path / between)
        convert.convert(tmp_path / between, tmp_path / "back.pth")
        assert model.config == convert.stored_form(VIT_T)
        assert_same(data(read_torch(tmp_path / "back.pth")), data(read_torch(mobile_sam_path)))


@pytest.mark.torch
@pytest.mark.weights
def test_official_mobile_sam_loads_what_is_written(mobile_sam_path, tmp_path):
    torch = pytest.importorskip("torch")
    from official import official_mobile_sam

    convert.convert(mobile_sam_path, tmp_path / "orbax")
    convert.convert(tmp_path / "orbax", tmp_path / "back.pth")
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    result = official_mobile_sam().load_state_dict(state, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    published = torch.load(mobile_sam_path, weights_only=True)
    assert set(state) == set(published)
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype
               for name, value in published.items())


@pytest.mark.torch
def test_official_vit_loads_what_is_written(tmp_path):
    """An official model's own state_dict, through torch.save, Orbax and back, loaded with strict=True."""
    torch = pytest.importorskip("torch")
    from official import official_sam

    shape = dict(shape=(32, 4, 2, (1, 3)), image_size=128, window=5)
    model = official_sam(seed=3, **shape)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert convert.read(tmp_path / "a.pth").config.encoder == ViT(32, 4, 2, (1, 3), window=5)
    convert.convert(tmp_path / "a.pth", tmp_path / "orbax")
    for last in ("b.pth", "c.safetensors"):
        convert.convert(tmp_path / "orbax", tmp_path / last)
    convert.convert(tmp_path / "c.safetensors", tmp_path / "c.pth")
    for name in ("b.pth", "c.pth"):
        other = official_sam(**shape)
        other.load_state_dict(torch.load(tmp_path / name, weights_only=True), strict=True)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_transformers_loads_what_is_written(tmp_path):
    """Its SamModel's own weights through save_pretrained, `.pth`, and back, loaded with from_pretrained."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.SamConfig(vision_config=dict(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, global_attn_indexes=[1, 3], window_size=5,
        image_size=128, mlp_dim=128), prompt_encoder_config=dict(image_size=128, image_embedding_size=8))
    model = transformers.SamModel(config)
    model.save_pretrained(tmp_path / "one")
    convert.convert(tmp_path / "one" / "model.safetensors", tmp_path / "official.pth")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").unlink()
    convert.convert(tmp_path / "official.pth", tmp_path / "two" / "model.safetensors", "transformers")
    again, info = transformers.SamModel.from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_models_without_classifier_are_completed(tiny, tmp_path):
    """Official MobileSAM asks for its unused classifier and its counters; a model trained here has none."""
    convert.write(tmp_path / "x.pth", replace(tiny, extras={}))
    found = read_torch(tmp_path / "x.pth")
    for extra in extras(SMALL_TINY):
        assert found[extra.official].shape == extra.shape and found[extra.official].dtype == extra.dtype
        assert not found[extra.official].load().any()


# -- recognising ---------------------------------------------------------------------------------------------

ODD = [
    replace(SMALL_VIT, image_size=(64, 64)),  # a grid smaller than the window
    replace(SMALL_VIT, image_size=(80, 160)),  # of the window's height
    replace(SMALL_VIT, image_size=(80, 80)),  # of the window's size: every block may be called global
    replace(SMALL_VIT, in_channels=1, decoder=Decoder(depth=1, mlp=24, masks=6)),
    SamConfig("custom", ViT(24, 3, 3, (), window=3, patch=8, mlp_ratio=2), Decoder(mlp=16), 16, (48, 32), 5),
    SamConfig("custom", ViT(24, 2, 4, (0, 1)), Decoder(mlp=16), 64, (32, 16)),
    SMALL_TINY, replace(SMALL_TINY, in_channels=4, encoder=replace(SMALL_TINY.encoder, patch_stride=1, mlp_ratio=3)),
]


@pytest.mark.parametrize("config", ODD, ids=range(len(ODD)))
def test_odd_models_are_recognised(config, tmp_path):
    """What a file does not tell (TinyViT's input size, labels) is the published model's; all else comes back."""
    model = model_of(config)
    convert.write(tmp_path / "x.pth", model)
    convert.write(tmp_path / "d", model)
    found = convert.read(tmp_path / "x.pth")
    assert_same(data(found.tensors), data(model.tensors))
    assert convert.read(tmp_path / "d").config == config
    assert found.config.in_channels == config.in_channels and found.config.decoder == config.decoder
    if isinstance(config.encoder, ViT):
        assert found.config.image_size == config.image_size
        pixels = np.random.default_rng(0).normal(size=(1, *config.image_size, config.in_channels)).astype(np.float32)
        if config.image_size == (80, 80):  # otherwise the configs are equal
            a, b = (encode_image(c, random_params(config), pixels) for c in (config, found.config))
            assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()
        else:
            assert found.config.encoder == replace(config.encoder, window=found.config.encoder.window)
            assert found.config.encoder.window == config.encoder.window or len(config.encoder.global_blocks) == 2


def test_resized_models_are_recognised(vit, tmp_path):
    for size in (16, (48, 96), (160, 80), 256):
        config, params = resize_positions(SMALL_VIT, vit.params(), size)
        convert.write(tmp_path / "x.pth", Model(config, {k: Tensor.of(v) for k, v in flatten(params).items()}))
        found = convert.read(tmp_path / "x.pth")
        assert found.config.image_size == config.image_size
        assert_same(data(found.tensors), {k: np.asarray(v) for k, v in flatten(params).items()})


@pytest.mark.parametrize("name, published", [("vit_b", "VIT_B"), ("vit_h", "VIT_H"), ("mobile_sam", "VIT_T"),
                                             ("lite_medsam", "LITE_MEDSAM")])
def test_published_models_are_named(name, published):
    from convert.recognise import recognise
    from samjax import config

    config = getattr(config, published)
    tensors = {row.official: Tensor(row.torch_shape, np.dtype("f4"), None) for row in rows(config)}
    assert recognise(tensors, "x") == (config, "official")


# -- broken files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors(official):
    return {name: {k: t.load() for k, t in read_torch(official / f"{name}.pth").items()} for name in ("vit", "tiny")}


def saved(tmp_path, arrays):
    write_torch(tmp_path / "x.pth", {name: Tensor.of(np.asarray(x)) for name, x in arrays.items()})
    return tmp_path / "x.pth"


def refusal(path):
    with pytest.raises(InputError) as caught:
        convert.read(path).params()
    message = str(caught.value)
    assert message.isprintable() and str(path) in message
    return message


def test_every_fault_is_named(tensors, tmp_path):
    arrays = dict(tensors["vit"])
    del arrays["mask_decoder.iou_token.weight"], arrays["image_encoder.blocks.2.norm1.bias"]
    arrays["image_encoder.extra"] = np.zeros(3, np.float32)
    arrays["mask_decoder.other.weight"] = np.zeros((1, 2), np.float32)
    arrays["image_encoder.blocks.1.attn.qkv.weight"] = np.zeros((96, 31), np.float32)
    arrays["prompt_encoder.no_mask_embed.weight"] = np.zeros((1, 32), np.int32)
    message = refusal(saved(tmp_path, arrays))
    for part in ("missing mask_decoder.iou_token.weight (1, 32)", "missing image_encoder.blocks.2.norm1.bias (32,)",
                 "unknown image_encoder.extra (3,)", "unknown mask_decoder.other.weight (1, 2)",
                 "image_encoder.blocks.1.attn.qkv.weight is (96, 31) where the model has (96, 32)",
                 "prompt_encoder.no_mask_embed.weight holds int32"):
        assert part in message


def test_misshaped_extras_are_named(tensors, tmp_path):
    name = "image_encoder.head.weight"
    message = refusal(saved(tmp_path, tensors["tiny"] | {name: np.zeros((5, 5), np.float32)}))
    assert f"{name} is (5, 5) where the model has (1000, 32)" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("directory", [False, True])
def test_nan_is_named(tensors, tmp_path, value, directory, vit):
    name, path = "image_encoder.blocks.1.mlp.lin1.weight", "image_encoder/blocks_1/mlp_in/kernel"
    if directory:
        broken = vit.tensors[path].load().copy()
        broken[3, 4] = value
        convert.write(tmp_path / "d", replace(vit, tensors=vit.tensors | {path: Tensor.of(broken)}))
        assert f"{path} holds NaN or infinity" in refusal(tmp_path / "d")
    else:
        broken = tensors["vit"][name].copy()
        broken[3, 4] = value
        assert f"{name} holds NaN or infinity" in refusal(saved(tmp_path, tensors["vit"] | {name: broken}))


@pytest.mark.parametrize("kind", ["f2", "f8", ml_dtypes.bfloat16])
def test_other_precisions_become_float32(tensors, tmp_path, kind):
    arrays = {name: x.astype(kind) if x.dtype.kind == "f" else x for name, x in tensors["tiny"].items()}
    found = flatten(convert.read(saved(tmp_path, arrays)).params())
    again = {name: x.astype(np.float32) if x.dtype.kind != "i" else x for name, x in arrays.items()}
    assert_same(found, flatten(convert.read(saved(tmp_path, again)).params()))
    assert all(x.dtype == np.float32 for x in found.values())


def test_half_precision_directories_become_float32(vit, tmp_path):
    half = {path: Tensor.of(t.load().astype(np.float16)) for path, t in vit.tensors.items()}
    convert.write(tmp_path / "d", replace(vit, tensors=half))
    found = convert.convert(tmp_path / "d", tmp_path / "x.pth")
    assert_same(data(found.tensors), {path: t.load().astype(np.float32) for path, t in half.items()})


def test_too_large_for_float32_is_named(tensors, tmp_path):
    name = "mask_decoder.iou_token.weight"
    arrays = tensors["vit"] | {name: np.full((1, 32), 1e300)}
    assert f"{name} holds NaN or infinity" in refusal(saved(tmp_path, arrays))


@pytest.mark.parametrize("arrays, message", [
    ({}, "is not a SAM checkpoint|holds no tensors"),
    ({"conv1.weight": np.zeros((3, 3))}, "is not a SAM checkpoint.*begins with 'conv1.weight'"),
    ({"image_encoder.patch_embed.proj.weight": np.zeros((32, 3, 16, 16))}, "missing 'image_encoder.pos_embed'"),
    ({"image_encoder.patch_embed.proj.weight": np.zeros((32,))}, "has shape"),
    ({"image_encoder.patch_embed.seq.0.c.weight": np.zeros((4, 3, 5, 5))}, "kernels of size 5"),
])
def test_other_checkpoints_are_told_apart(tmp_path, arrays, message):
    import re

    assert re.search(message, refusal(saved(tmp_path, arrays)))


def test_models_that_could_not_run_are_refused(tmp_path):
    """Shapes that fit together but not the heads, whose number no tensor of the decoder tells."""
    for config in (replace(SMALL_VIT, channels=24), replace(SMALL_TINY, channels=40),
                   replace(SMALL_TINY, encoder=replace(SMALL_TINY.encoder, heads=(1, 3, 3, 4)))):
        arrays = {row.official: np.zeros(row.torch_shape, np.float32) for row in rows(config)}
        assert "do not fit together" in refusal(saved(tmp_path, arrays))


def mutate(random, arrays, other):
    """One to three changes of the kind that damaged, foreign or half-converted files show."""
    arrays = dict(arrays)
    for _ in range(random.integers(1, 4)):
        name = str(random.choice(list(arrays)))
        x = arrays[name]
        match random.integers(14):
            case 0:
                del arrays[name]
            case 1:
                arrays[f"{name}2"] = arrays.pop(name)
            case 2:
                arrays[name.replace("1", "7", 1)] = arrays.pop(name)
            case 3:
                arrays[name] = x.T
            case 4:
                arrays[name] = x[None]
            case 5:
                arrays[name] = x[..., :-1] if x.ndim else np.zeros((2,), np.float32)
            case 6:
                arrays[name] = np.zeros((*x.shape[:-1], 0), x.dtype)
            case 7:
                arrays[name] = x.astype(str(random.choice(["f2", "f8", "i1", "i8", "?"])))
            case 8:
                arrays[name] = np.full_like(x, np.nan if x.dtype.kind == "f" else 1)
            case 9:
                arrays[name] = np.float32(3)
            case 10:
                name = str(random.choice(list(other)))
                arrays[name] = other[name]
            case 11:
                arrays[name] = np.concatenate([x, x]) if x.ndim else x
            case 12:
                arrays = {k: v for k, v in arrays.items() if not k.startswith(name.rsplit(".", 2)[0])}
            case 13:
                arrays[name] = np.zeros(tuple(random.integers(1, 40, x.ndim)), np.float32)
        if not arrays:
            break
    return arrays


@pytest.mark.parametrize("part", range(6))
def test_fuzz_of_whole_models(tensors, tmp_path, part):
    """Each is refused in one line, or is a model whose shapes are right and that can run."""
    random = np.random.default_rng(part)
    refused = 0
    for _ in range(50):
        start, other = random.permutation(["vit", "tiny"])
        path = saved(tmp_path, mutate(random, tensors[start], tensors[other]))
        try:
            model = convert.read(path)
            params = model.params()
        except InputError as error:
            assert str(error).isprintable() and str(path) in str(error)
            refused += 1
            continue
        assert {k: v.shape for k, v in flatten(params).items()} == {row.path: row.shape for row in rows(model.config)}
        assert all(np.isfinite(x).all() for x in flatten(params).values())
        size = (1, *model.config.image_size, model.config.in_channels)
        jax.eval_shape(lambda p: encode_image(model.config, p, np.zeros(size, np.float32)), params)  # noqa: B023
    assert refused > 30


# -- directories ---------------------------------------------------------------------------------------------


@pytest.fixture
def directory(vit, tmp_path):
    convert.write(tmp_path / "model", vit)
    return tmp_path / "model"


def test_directories_are_replaced_but_only_ones_own(directory, vit, tiny, tmp_path):
    convert.write(directory, tiny)
    assert convert.read(directory).config == SMALL_TINY
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("too")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match="exists and is not a samjax model"):
            convert.write(tmp_path / name, vit)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it" and (tmp_path / "file").read_text() == "too"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "model"]


def test_directories_have_ordinary_permissions(directory, tmp_path):
    (tmp_path / "plain").mkdir()
    assert directory.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_save_leaves_the_old_one(directory, vit, tmp_path):
    def fail():
        raise OSError(28, "No space left on device")

    name = next(iter(vit.tensors))
    broken = replace(vit.tensors[name], load=fail)
    with pytest.raises(InputError, match="cannot be written.*No space left"):
        convert.write(directory, replace(vit, tensors=vit.tensors | {name: broken}))
    assert_same(data(convert.read(directory).tensors), data(vit.tensors))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_damaged_directories_are_refused(directory, tmp_path):
    """Every file of it damaged in two of four ways, in turn: taken away, emptied, cut, scrambled."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    assert len(files) > 3
    whole, refused = data(convert.read(directory).tensors), 0
    for i, file in enumerate(files):
        good = file.read_bytes()
        for bad in (None, b"", good[: len(good) // 2], good[::-1])[i % 2 :: 2]:
            file.unlink() if bad is None else file.write_bytes(bad)
            try:
                found = convert.read(directory).params()
            except InputError as error:
                assert str(error).isprintable() and str(directory) in str(error) and len(str(error)) < 600
                refused += 1
            else:
                assert_same(flatten(found), whole)  # what was damaged is not needed
            file.write_bytes(good)
    assert refused > 4
    assert_same(data(convert.read(directory).tensors), whole)


@pytest.mark.parametrize("change", [
    {"encoder": {"kind": "vit", "depth": 10**9}}, {"encoder": {"kind": "vit", "width": "32"}},
    {"encoder": {"kind": "swin"}}, {"encoder": {"kind": "vit", "colour": 1}}, {"encoder": None}, {"encoder": []},
    {"image_size": [64]}, {"image_size": [63, 64]}, {"image_size": None}, {"channels": -1}, {"channels": 1.5},
    {"decoder": {"masks": 10**12}}, {"decoder": {"depth": True}}, {"dtype": "int4"}, {"name": 3}, {"wrong": 1},
    {"pixel_mean": "grey"}, {"encoder": {"kind": "vit", "heads": 0, "width": 32}},
    {"encoder": {"kind": "tiny_vit", "widths": [1]}}, {"encoder": {"kind": "tiny_vit", "depths": [10**9] * 4}},
])
def test_damaged_configs_are_refused(directory, change):
    file = directory / "samjax.json"
    values = json.loads(file.read_text())
    values["config"] |= change
    file.write_text(json.dumps(values))
    assert "config" in refusal(directory) or "does not fit" in refusal(directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"config": 3}', '{"config": {}}', "\0"])
def test_configs_that_are_none_are_refused(directory, text):
    (directory / "samjax.json").write_text(text)
    assert "samjax.json" in refusal(directory)


def test_folders_that_are_no_models_are_refused(tmp_path):
    assert "is not a samjax model" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "none.pth")


def test_nest_is_the_inverse_of_flatten(vit):
    params = vit.params()
    assert jax.tree.structure(nest(flatten(params))) == jax.tree.structure(params)
