"""What a result was made with."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import samjax

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


def versions() -> dict[str, str]:
    """Of Python, samjax and the packages that numbers depend on."""
    found = {"python": platform.python_version(), "samjax": samjax.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of samjax, where it runs from a checkout of its own; with "+" where files differ from it."""
    root = Path(samjax.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    git = lambda *words: subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True,
                                        check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "samjax", "convert") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
