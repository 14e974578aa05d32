"""What pip installs works on its own, away from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

left_out = shutil.ignore_patterns(".*", "edit", "_docs", "build", "dist", "__pycache__", "*.egg-info", "runs")


def _run(*words: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SCALEKIT"))}
    run = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory) -> Path:
    "Folder of a fresh environment with the wheel, made from the source archive; its libraries are this one's"
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(root, folder / "source", ignore=left_out, symlinks=True)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source", cwd=folder)
    shutil.rmtree(folder / "source")
    [wheel] = folder.glob("*.whl")

    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    _run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    [site] = folder.glob("venv/lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def _value(installed: Path, expression: str):
    "What `expression` is in the fresh environment"
    imports = "import json; from importlib import metadata; import scalekit; from scalekit import template"
    code = f"{imports}; print(json.dumps({expression}))"
    return json.loads(_run(installed / "venv/bin/python", "-c", code, cwd=installed))


def test_the_package_is_the_installed_one(installed):
    assert Path(_value(installed, "scalekit.__file__")).is_relative_to(installed / "venv")


def test_every_template_is_there(installed, root):
    found = [Path(p) for p in _value(installed, "[str(t.path) for t in template.list_templates()]")]
    assert all(path.is_relative_to(installed / "venv") for path in found)
    assert [path.name for path in found] == sorted(path.name for path in (root / "templates").glob("*.ipynb"))


def test_the_command_answers(installed):
    assert "usage: scalekit" in _run(installed / "venv/bin/scalekit", "--help", cwd=installed)


def test_every_entry_point_loads(installed):
    # papermill goes first, as it does in use: it loads its engines while it is being imported.
    first = "__import__('papermill') and "
    assert all(
        _value(installed, first + "[bool(e.load()) for e in metadata.distribution('scalekit').entry_points]")
    )


def test_types_and_licence_travel_along(installed):
    files = _value(installed, "[str(f) for f in metadata.files('scalekit')]")
    assert "scalekit/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)


def test_both_halves_of_jupyterlab_s_part_are_there(installed, root):
    found = _value(installed, "str(__import__('scalekit.lab.extension').lab.extension.find_labextensions())")
    own, source = Path(found), root / "scalekit" / "labextension"
    assert own.is_relative_to(installed / "venv")
    files = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    assert "scalekit-lab/static/remoteEntry.js" in files
    assert files == sorted(str(path.relative_to(own)) for path in own.rglob("*") if path.is_file())
    told = _run(installed / "venv/bin/python", "-c", _LIST_EXTENSIONS, found, cwd=installed)
    assert json.loads(told) == {"name": "scalekit-lab", "load": "static/remoteEntry.js"}


_LIST_EXTENSIONS = """
import json, sys
from jupyterlab_server.config import get_federated_extensions
one = get_federated_extensions([sys.argv[1]])["scalekit-lab"]
print(json.dumps({"name": one["name"], "load": one["jupyterlab"]["_build"]["load"]}))
"""
