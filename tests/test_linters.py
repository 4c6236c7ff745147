"""The house's rules, kept by machines: style, types, and which layer may import which."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent


def lint(tool: str, *arguments: str, cache: Path) -> None:
    """Run ``tool`` of this interpreter's environment over the tree; whatever it finds is the failure's
    text.
    """
    environment = os.environ | {
        "RUFF_CACHE_DIR": str(cache / "ruff"),
        "MYPY_CACHE_DIR": str(cache / "mypy"),
        "PYTHONPATH": str(
            TREE
        ),  # lint-imports reads the package that it can import: the tree's, not the installed
    }
    done = subprocess.run(
        [str(Path(sys.executable).parent / tool), *arguments],
        cwd=TREE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=110,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"{tool}:\n{done.stdout}", pytrace=False)


def test_ruff(tmp_path: Path) -> None:
    lint("ruff", "check", ".", cache=tmp_path)


def test_types(tmp_path: Path) -> None:
    lint("mypy", "--strict", cache=tmp_path)


def test_layers(tmp_path: Path) -> None:
    lint("lint-imports", "--no-cache", cache=tmp_path)
