"""`scalekit lab`: for one start, for good, and what it says is missing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lab import Lab
from processes import SCALEKIT, wait_until

from scalekit.jobs.leader import find_leader


@pytest.fixture
def folder() -> Iterator[Path]:
    "Short, as sockets lie below it"
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def call(lab: Lab, *words: str) -> subprocess.CompletedProcess:
    "The command, as the user of that server would give it"
    return subprocess.run(
        [SCALEKIT, "lab", *words],
        cwd=lab.root,
        env=lab.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_one_command_starts_it_all_on_loopback_with_a_token_and_leaves_nothing_at_home(folder):
    lab = Lab(folder, command=(SCALEKIT, "lab", str(folder / "work"), "--"))
    with lab:
        features = lab.ask("/scheduler/config")["supported_features"]
        assert all(features.values())
        assert lab.ask("/scalekit/api/profiles")
        assert lab.refuse("/scheduler/config", token="wrong")[0] == 403
        wait_until(lambda: find_leader(lab.store))
        said = lab.log.read_text().splitlines()
        assert said[0] == f"JupyterLab shows {lab.root}; its jobs and their runs are kept in {lab.store}"
        assert said[1].startswith("daemon: started, and stays when JupyterLab ends; its log: ")
        assert lab.stop()
        assert find_leader(lab.store) is not None
        lab.start()
        assert f"daemon: process {find_leader(lab.store).pid}" in lab.log.read_text()
    assert not list(folder.glob("**/scheduler.sqlite"))
    assert not list((folder / "config").glob("jupyter_*"))


def test_installed_it_is_in_every_jupyter_lab_until_it_is_taken_away(folder):
    lab = Lab(folder, command=(sys.executable, "-m", "jupyterlab"))
    assert call(lab, "--check").returncode == 0
    assert call(lab, "--install", "--user").returncode == 0
    assert "scalekit's in every jupyter lab" in call(lab, "--check").stdout
    with lab:
        assert all(lab.ask("/scheduler/config")["supported_features"].values())
        page = lab.ask("/lab").decode()
        assert '"name": "scalekit-lab"' in page
    removed = call(lab, "--uninstall", "--user")
    assert (removed.returncode, removed.stdout.count("removed ")) == (0, 3)
    assert not list((folder / "config").glob("**/*scal*"))


def test_the_check_says_what_is_missing_and_what_brings_it(folder):
    lab = Lab(folder)
    off = {"disabledExtensions": {"@jupyterlab/scheduler": True}}
    (folder / "config/labconfig/page_config.json").write_text(json.dumps(off))
    (folder / "config/jupyter_lab_config.py").write_text("c.SchedulerApp.scheduler_class = 'my.Scheduler'\n")
    done = call(lab, "--check", "--json")
    wrong = {one["topic"]: one for one in json.loads(done.stdout) if one["mend"]}
    assert (done.returncode, set(wrong)) == (1, {"backend", "browser extension"})
    assert wrong["browser extension"]["mend"] == "jupyter labextension enable @jupyterlab/scheduler"
    assert "names another one: my.Scheduler" in wrong["backend"]["text"]
    assert call(lab, "no-such-folder").returncode == 2
