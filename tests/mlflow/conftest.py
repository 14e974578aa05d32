"""A real MLflow server on loopback, for the tests in this folder."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scalekit.bundle import Bundle
from scalekit.store import Store
from scalekit.track.courier import Errand, carry
from scalekit.track.door import Sent
from scalekit.track.mlflowdoor import MlflowDoor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker("mlflow")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "Address of an MLflow server with a database and a place for files"
    home, program = tmp_path_factory.mktemp("server"), Path(__file__).parents[2] / ".venv-mlflow/bin/mlflow"
    if not program.exists():
        pytest.fail("there is no MLflow server here. Run: make mlflow")
    port, log = _free_port(), home / "log"
    words = [
        program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{home}/runs.db", "--artifacts-destination", str(home / "files"),
    ]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            words, env=os.environ | quiet, cwd=home, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait(url := f"http://127.0.0.1:{port}", process, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the group that was started above, and nothing else
        process.wait()


@pytest.fixture(scope="session")
def client(server: str) -> Any:
    "To look at what the server has"
    from mlflow import MlflowClient

    return MlflowClient(server)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    "Where runs of a test are"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALEKIT_STORE", raising=False)
    return Store(tmp_path / "runs")


@pytest.fixture
def target(server: str, tmp_path: Path) -> dict[str, str]:
    "An experiment that no other test has"
    return {"experiment": tmp_path.name, "uri": server}


@pytest.fixture(scope="session")
def door() -> MlflowDoor:
    return MlflowDoor()


@pytest.fixture
def send(door: MlflowDoor) -> Callable[..., Sent]:
    "Send a run, and those that went on with it, as a courier does"

    def send(*bundles: Bundle, **target: str) -> Sent:
        where = bundles[-1].asked["mlflow"] | target
        return carry(Errand("mlflow", tuple(str(bundle.path) for bundle in bundles), where), door)

    return send
