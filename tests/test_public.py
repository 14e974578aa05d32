"""What `import scalekit` gives, and what it leaves for later."""

import ast
import subprocess
import sys
from importlib.util import find_spec

import pytest

import scalekit

heavy = {"dask", "distributed", "matplotlib", "nbformat", "numpy", "pandas", "papermill", "pyarrow"}
heavy |= {"pydantic", "rich", "torch"}


def _imported_by(code: str) -> set[str]:
    "Packages in memory after `code` ran in a new interpreter"
    show = f"{code}\nimport sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in out.splitlines()[-1].split()}


def _named_for_mypy(root) -> set[tuple[str, str]]:
    "(module, name) of each import under TYPE_CHECKING"
    tree = ast.parse((root / "scalekit" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {(node.module, alias.asname) for node in block.body for alias in node.names}


@pytest.mark.parametrize("name", scalekit.__all__)
def test_every_public_name_is_there(name):
    assert getattr(scalekit, name) is not None
    assert name in dir(scalekit)


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        scalekit.runn  # noqa: B018


def test_mypy_and_editors_see_the_same_names(root):
    assert _named_for_mypy(root) == {(module, name) for name, module in scalekit._home.items()}


def test_no_module_takes_the_place_of_a_public_name():
    assert [name for name in scalekit._home if find_spec(f"scalekit.{name}")] == []


@pytest.mark.parametrize("code", ["import scalekit", "import scalekit.cli"])
def test_heavy_libraries_wait_until_they_are_needed(code):
    assert _imported_by(code) & heavy == set()
