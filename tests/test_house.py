"""The rules of the house that can be read off the source: who imports whom, what stays out, how long a file is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "samjax").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])
# Each may import those before it and its own kind; what is not listed may import anything of the library.
LAYERS = ["errors", "config", "ops", "image", "model", "predict", "automatic", "tiling"]
BESIDE = {  # a module or package, and what of the library it may import
    "errors": set(), "config": set(), "ops": {"errors", "config"},
    "image": {"errors", "config", "ops"}, "model": {"errors", "config", "ops", "int8"}, "int8": set(),
    "convert": {"errors", "config", "checkpoint", "int8"},  # `model` only for shapes, which the table writes out
    "checkpoint": {"errors", "config", "convert", "quiet"}, "quiet": set(),
    "weights": {"errors", "sources"}, "sources": {"errors"},
    "predict": {"errors", "config", "ops", "image", "model", "convert", "weights", "parallel",
                "embeddings"},
    "embeddings": {"errors"},
    "parallel": {"errors"},
    "data": {"errors", "config", "ops", "image", "rle", "inputs", "weights"},
    "evaluate": {"errors", "config", "ops", "image", "data", "predict", "upscale", "automatic", "rle"},
}
# Files that are parts of one of the parts above.
PARTS = {"geometry": "ops", "resample": "ops", "prompts": "image", "draw": "image", "windows": "image", "tiff": "image",
         "spool": "image", "runs": "ops", "seams": "ops", "suppress": "ops", "zoom": "tiling", "tiles": "tiling",
         "kept": "tiling", "looks": "tiling", "sharding": "parallel", "lockstep": "automatic"}
FACADE = {("samjax.predict", "automatic")}  # Sam.everything, which imports it when called
HEAVY = {"torch", "safetensors", "torchvision", "transformers", "cv2", "timm", "segment_anything",
         "pycocotools"}


def part(module: str) -> str | None:
    """The part of the library that a dotted module belongs to: samjax.model.sam -> model."""
    root, *rest = module.split(".")
    if root == "convert":
        return "convert"
    if root != "samjax":
        return None
    name = rest[0] if rest else "samjax"
    return PARTS.get(name, name)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted modules that a file imports: anywhere in it, or only where it is imported itself."""
    tree, found = ast.parse(path.read_text()), set()
    nodes = ast.walk(tree) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_one_way(path):
    module = module_of(path)
    if module.endswith("__main__"):  # starts the command line
        return
    own, used = part(module), {part(name) for name in imports(path)} - {None, "samjax"}
    used -= {name for name in used if (module, name) in FACADE and name not in map(part, imports(path, False))}
    if own in BESIDE:
        assert used <= BESIDE[own] | {own}
    used_layers = [LAYERS.index(name) for name in used if name in LAYERS]
    if own in LAYERS and used_layers:
        assert max(used_layers) <= LAYERS.index(own)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_heavy_packages_stay_out(path):
    used = {name.split(".")[0] for name in imports(path)}
    assert not used & HEAVY
    assert "experiments" not in used and "tests" not in used
    if path != ROOT / "samjax" / "checkpoint.py":
        assert "orbax" not in used
    if path not in (ROOT / "samjax" / "data" / "pipeline.py", ROOT / "samjax" / "reading.py"):
        assert "grain" not in used
    used = {name.split(".")[0] for name in imports(path, everywhere=False)}
    assert not used & {"scipy", "orbax"}  # slow to import: only where they are needed


@pytest.mark.parametrize("path", [path for path in SOURCES if module_of(path) in (
    "samjax", "samjax.config", "samjax.errors", "samjax.weights", "samjax.sources", "samjax.cli", "samjax.image",
    "samjax.geometry", "samjax.prompts", "samjax.draw", "samjax.windows", "samjax.spool", "samjax.runs",
    "samjax.seams", "samjax.suppress", "samjax.tiles", "samjax.kept", "samjax.preview", "samjax.job",
    "samjax.commands.tiles", "samjax.int8") or module_of(path).startswith(("convert", "samjax.data"))], ids=module_of)
def test_quick_modules_do_not_import_jax(path):
    assert not {name.split(".")[0] for name in imports(path, everywhere=False)} & {"jax", "flax", "orbax", "optax"}


def test_files_are_short():
    """Of tests and experiments too."""
    files = [*SOURCES, *(ROOT / "experiments").rglob("*.py")]
    assert not {str(path): n for path in files if (n := len(path.read_text().splitlines())) > 400}


def test_everything_is_found():
    """The rules above would hold for no files at all."""
    names = {module_of(path) for path in SOURCES}
    assert {"samjax.predict", "samjax.model.sam", "convert.table", "samjax.checkpoint"} <= names
    assert "samjax.config.SamConfig" in imports(ROOT / "samjax" / "predict.py")
    assert any("orbax" in name for name in imports(ROOT / "samjax" / "checkpoint.py"))
