"""The unit of systemd that `scalekit serve --install` writes."""

import configparser
import os
import shlex
import shutil
import subprocess

import pytest
from processes import SCALEKIT

from scalekit.jobs.unit import install_unit

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def project(tmp_path):
    "A project whose path holds all that units read in ways of their own"
    folder = tmp_path / '50% of "my" $HOME'
    folder.mkdir()
    (folder / "scalekit.toml").write_text('store = "runs"\n')
    return folder


def read_unit(text):
    unit = configparser.RawConfigParser(strict=True)
    unit.optionxform = str
    unit.read_string(text)
    return unit


@pytest.mark.parametrize("system", [False, True])
def test_systemd_reads_it_without_a_complaint(project, tmp_path, system):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed here")
    unit = install_unit(project, system=system, environ={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)})
    file = tmp_path / unit.name
    file.write_text(unit.text)
    words = ["systemd-analyze", *([] if system else ["--user"]), "--man=no", "verify", str(file)]
    told = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    )
    mine = [line for line in told.stderr.splitlines() if unit.name in line]
    assert mine == [] and told.returncode == 0, told.stderr


def test_attempts_survive_the_daemon_and_it_comes_back_whatever_ended_it(project, tmp_path):
    unit = read_unit(
        install_unit(project, environ={"XDG_CONFIG_HOME": str(tmp_path), "PATH": "/usr/bin"}).text
    )
    service = unit["Service"]
    assert (service["KillMode"], service["Restart"], service["OOMPolicy"]) == (
        "process",
        "always",
        "continue",
    )
    assert unit["Unit"]["StartLimitIntervalSec"] == "0" and unit["Install"]["WantedBy"] == "default.target"
    assert service["EnvironmentFile"].startswith("-") and "PASSWORD" not in str(dict(service))


def test_its_command_runs_the_daemon_of_that_project(project, tmp_path):
    unit = read_unit(
        install_unit(project, environ={"XDG_CONFIG_HOME": str(tmp_path), "PATH": "/usr/bin"}).text
    )
    folder = unit["Service"]["WorkingDirectory"].replace("%%", "%")
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(unit["Service"]["ExecStart"])]
    told = subprocess.run([*words, "--help"], cwd=folder, capture_output=True, text=True)
    assert folder == str(project) and told.returncode == 0 and "--install" in told.stdout


def test_the_verb_writes_the_unit_and_says_what_to_type_and_starts_nothing(project, tmp_path):
    environ = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    told = subprocess.run(
        [SCALEKIT, "serve", "--install"], cwd=project, env=environ, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    (file,) = (tmp_path / "systemd" / "user").iterdir()
    assert file.name == "scalekit-50-of-my-HOME.service"
    assert f"systemctl --user enable --now {file.name}" in told.stdout and "enable-linger" in told.stdout
    assert not (project / "runs").exists()


def test_the_unit_of_the_machine_goes_to_standard_output_only(project, tmp_path):
    environ = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    words = [SCALEKIT, "serve", "--install", "--system"]
    told = subprocess.run(words, cwd=project, env=environ, capture_output=True, text=True)
    assert read_unit(told.stdout)["Install"]["WantedBy"] == "multi-user.target"
    assert "sudo tee /etc/systemd/system/" in told.stderr and not (tmp_path / "systemd").exists()
