"""What all tests share: eight devices, strict types, small models, real weights, the reference folder."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

# Before anything imports jax: a CPU that counts as eight devices, for the tests of sharding.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small models' programs run for milliseconds: to compile them well would take most of the time of the tests.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # see quick_programs.py

import jax
import numpy as np
import pytest
from quick_programs import QUICK

from samjax.config import Decoder, SamConfig, TinyViT, ViT

DATA = Path(__file__).parent / "data"
sys.path.insert(0, str(DATA.parents[1] / "experiments"))  # what tests and experiments share lies there
collect_ignore = [] if importlib.util.find_spec("libtpu") else ["tpu"]  # these compile for TPUs that are not there

jax.config.update("jax_numpy_dtype_promotion", "strict")
if "SAMJAX_TEST_PROGRAMS" not in os.environ:  # the workers of pytest-xdist share their parent's
    _programs = tempfile.TemporaryDirectory(prefix="samjax-tests-")
    os.environ["SAMJAX_TEST_PROGRAMS"] = _programs.name
jax.config.update("jax_compilation_cache_dir", os.environ["SAMJAX_TEST_PROGRAMS"])  # what is compiled twice in a run
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

SMALL_DECODER = Decoder(mlp=64)
SMALL_VIT = SamConfig("custom", ViT(width=32, depth=4, heads=2, global_blocks=(1, 3), window=5), SMALL_DECODER,
                      channels=32, image_size=(64, 96))
SMALL_TINY = SamConfig("custom", TinyViT((8, 16, 24, 32), (1, 1, 2, 1), (1, 2, 3, 4), (3, 3, 5, 3),
                                         fold_batch_norm=False), SMALL_DECODER, channels=32, image_size=(64, 96))


def random_params(config: SamConfig, seed: int = 0) -> dict:
    """Parameters with every value random: `init` leaves biases and position tables at zero, which hides mistakes."""
    from samjax.model.sam import init

    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        z = random.standard_normal(leaf.shape, np.float32)
        match path[-1].key:
            case "scale" | "norm_scale":
                return 1 + 0.1 * z
            case "norm_var":
                return 1 + 0.1 * np.abs(z)
            case "kernel":
                return z / np.float32(np.prod(leaf.shape[:-1])) ** np.float32(0.5)
            case "gaussian" | "iou_token" | "mask_tokens":
                return z
        return 0.1 * z

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def small_vit():
    """(config, params) of a ViT whose sides differ and whose windows do not divide its grid."""
    return SMALL_VIT, random_params(SMALL_VIT)


@pytest.fixture(scope="session")
def small_tiny():
    """(config, params) of a small TinyViT, BatchNorm unfolded."""
    return SMALL_TINY, random_params(SMALL_TINY)


@pytest.fixture
def config():
    """A model of 64 x 64 pixels and masks of 16 x 16, for the training data."""
    return SamConfig("custom", ViT(width=32, depth=1, heads=2), Decoder(mlp=64), channels=32, image_size=(64, 64))


REAL, WHOLE = {"mobile_sam", "mobile_sam_path", "lite_medsam", "reference"}, ("weights", "torch", "whole")


def pytest_collection_modifyitems(items):
    """Files with long tests first: of two processes that share the files, none is left alone with one at the end."""
    def long(item):
        return REAL & set(getattr(item, "fixturenames", ())) or any(map(item.get_closest_marker, ("slow", *WHOLE)))

    first = {item.path for item in items if long(item)}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(autouse=True)
def optimised_programs(request, monkeypatch):
    """Programs of whole models (fixtures REAL, markers WHOLE) are worth optimising."""
    if REAL & set(request.fixturenames) or any(map(request.node.get_closest_marker, WHOLE)):
        monkeypatch.delenv(QUICK)
        jax.config.update(QUICK.lower(), False)
        yield
        jax.config.update(QUICK.lower(), True)
    else:
        yield


@pytest.fixture(autouse=True)
def own_indexes(request):
    """Tests of the training data keep the indexes of their data sets to themselves."""
    if request.path.parent.name == "pipeline":
        cache = request.getfixturevalue("tmp_path") / "cache"
        request.getfixturevalue("monkeypatch").setenv("SAMJAX_CACHE", str(cache))


@pytest.fixture(scope="session")
def reference():
    """The folder $SAMJAX_REFERENCE: golden/ (outputs of the official code) and images/ (the photographs)."""
    folder = os.environ.get("SAMJAX_REFERENCE")
    if not folder:
        pytest.skip("SAMJAX_REFERENCE names no folder with the official outputs (golden/) and photographs (images/)")
    assert (Path(folder) / "golden").is_dir() and (Path(folder) / "images").is_dir(), f"{folder} lacks them"
    return Path(folder)


def fetched(name: str) -> Path:
    """A known checkpoint; without a network the test is skipped, but never in CI."""
    from samjax.errors import InputError
    from samjax.weights import fetch

    try:
        return fetch(name, progress=False)
    except InputError as error:
        if os.environ.get("CI", "").lower() == "true":
            raise
        pytest.skip(f"{name} cannot be fetched: {error}")


@pytest.fixture(scope="session")
def mobile_sam_path():
    return fetched("mobile_sam")


@pytest.fixture(scope="session")
def mobile_sam(mobile_sam_path):
    """The real MobileSAM, loaded once."""
    import samjax

    return samjax.load(mobile_sam_path)


@pytest.fixture(scope="session")
def lite_medsam():
    """The real LiteMedSAM."""
    import samjax

    return samjax.load(fetched("lite_medsam"))
