"""Fixtures for tests that need GPUs: `pytest_plugins = "gpusim.fixtures"`."""

import json
import subprocess
import sys
import textwrap

import pytest

from gpusim import build_gpusim, simulate_gpus


@pytest.fixture(scope="session")
def gpu_libraries(tmp_path_factory):
    "Folder with the simulator, for LD_LIBRARY_PATH"
    return build_gpusim(tmp_path_factory.mktemp("gpusim"))


@pytest.fixture(scope="session")
def run_on_gpus(gpu_libraries, tmp_path_factory):
    "Function that runs a script on simulated GPUs and returns what the script hands to `report`"

    def run(script, n_gpus=4, visible=None, timeout=240, **knobs):
        state = tmp_path_factory.mktemp("state")
        environ = simulate_gpus(gpu_libraries, state, n_gpus, **knobs)
        if visible is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible
        done = subprocess.run(
            [sys.executable, "-c", f"{_PREPARE}\n{textwrap.dedent(script)}", str(state / "report.json")],
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=state,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((state / "report.json").read_text())

    return run


_PREPARE = """
import json, sys
def report(**facts):
    with open(sys.argv[1], "w") as file:
        json.dump(facts, file)
"""
