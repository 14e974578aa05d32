"""Runs and sweeps as jobs of a real Slurm on loopback, with GPUs that have no chip behind them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from notebooks import write_notebook
from processes import SCALEKIT, start_scalekit, wait_until
from slurm import list_queue, start_slurm, why_no_slurm

import scalekit as sk
from scalekit.cluster import open_cluster
from scalekit.config import load_settings
from scalekit.extras import MissingPackage
from scalekit.jobs.book import JobBook
from scalekit.place import BadShare
from scalekit.rules import ConfigError
from scalekit.store import Store
from scalekit.workers import ClusterError

pytestmark = [
    pytest.mark.skipif(bool(why_no_slurm()), reason=why_no_slurm()),
]

PROFILE = """
store = "runs"
[profiles.hpc]
kind = "slurm"
host = "127.0.0.1"
partition = "gpu"
gpus = 1
memory_limit = "1 GiB"
shared_folder = "shared"
"""

TELL = """
import os, scalekit as sk
sk.record(gpu=os.environ["CUDA_VISIBLE_DEVICES"], job=os.environ["SLURM_JOB_ID"])
sk.record(colour=os.environ.get("COLOUR"))
"""

FIRST_TIME_WAITS = """
from pathlib import Path
import time
first = not Path("been").exists()
Path("been").touch()
time.sleep(300 * first)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with start_slurm(tmp_path_factory.mktemp("slurm") / "slurm") as environ:
        yield environ


@pytest.fixture
def hpc(slurm, place, monkeypatch):
    "A folder with the profile `hpc`; nothing of it is in Slurm's queue or in the shared folder afterwards"
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    (place / "scalekit.toml").write_text(PROFILE)
    yield place
    wait_until(lambda: list_queue(slurm) == [])
    assert list((place / "shared").glob("*")) == []


def run_in_thread(*words, **options):
    "A run that goes on beside the test; its future result is the last of a list"
    told = []

    def work():
        try:
            told.append(sk.run(*words, **options))
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, told


def profile_with(place: Path, lines: str) -> None:
    (place / "scalekit.toml").write_text(PROFILE + lines)


# What runs there


def test_trials_of_a_sweep_run_side_by_side_each_with_its_gpu_and_all_is_encrypted_and_on_loopback(
    hpc, slurm
):
    profile_with(hpc, 'workers = 2\nprotocol = "tls"\n')
    notebook = write_notebook(
        hpc / "meet.ipynb",
        ("me = 0", "parameters"),
        f"""
from pathlib import Path
import time
Path(f"here{{me}}").touch()
end = time.monotonic() + 120
while not (Path("here0").exists() and Path("here1").exists()) and time.monotonic() < end:
    time.sleep(0.05)
{TELL}
""",
    )
    listening: dict[str, set[str]] = {}

    def look(progress):
        if progress.running and not listening:
            for process in psutil.process_iter(["cmdline", "pid"]):
                if "dask_worker" in " ".join(process.info["cmdline"] or ()):
                    family = [process, *process.children(recursive=True)]
                    ports = [one for each in family for one in each.net_connections()]
                    listening[str(process.pid)] = {one.laddr.ip for one in ports if one.status == "LISTEN"}
            files = list((hpc / "shared").glob("*/*.pem"))
            assert len(files) == 3 and {oct(file.stat().st_mode)[-3:] for file in files} == {"600"}

    sweep = sk.sweep(notebook, me=[0, 1], profile="hpc", on_progress=look)
    assert [row["state"] for row in sweep.rows] == ["succeeded"] * 2
    assert {str(row["metrics"]["gpu"]) for row in sweep.rows} == {"0", "1"}
    assert len({str(row["metrics"]["job"]) for row in sweep.rows}) == 2
    assert listening and set().union(*listening.values()) == {"127.0.0.1"}


# What goes wrong


def test_a_run_whose_job_is_cancelled_says_so_and_goes_on_with_a_new_job(hpc, slurm):
    notebook = write_notebook(hpc / "slow.ipynb", FIRST_TIME_WAITS, TELL)
    thread, told = run_in_thread(notebook, profile="hpc", retries=1)
    wait_until((hpc / "been").exists)
    number = list_queue(slurm)[0].split()[0]
    subprocess.run(["scancel", number], check=True)
    thread.join(200)
    assert told[0].state == "succeeded" and str(told[0].metrics["job"]) != number
    first = Store(hpc / "runs", hpc).list_runs(state="failed")[0]
    assert f"Slurm job {number} on {socket.gethostname()} was cancelled" in first["error"]


def test_a_sweep_whose_only_worker_is_cancelled_ends_with_the_reason(hpc, slurm):
    notebook = write_notebook(hpc / "slow.ipynb", ("me = 0", "parameters"), FIRST_TIME_WAITS)

    def cancel(progress):
        if (hpc / "been").exists():
            for line in list_queue(slurm):
                subprocess.run(["scancel", line.split()[0]], check=True)

    with pytest.raises(ClusterError, match="profile 'hpc': no worker is left: Slurm job .* was cancelled"):
        sk.sweep(notebook, me=[0], profile="hpc", on_progress=cancel)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('partition = "gpus"', "Slurm has no partition 'gpus'. Did you mean 'gpu'?"),
        ("gpus = 3", "in partition 'gpu' none has more than 2, got gpus = 3"),
        ('memory_limit = "100 GiB"', "Slurm must take the job of a worker, got: Memory specification"),
        ('directives = ["--nodelist=nowhere"]', "Slurm must take the job of a worker, got: "),
        ('partition = "short"\nwalltime = "0:10:00"', "allows no job that is so large or so long"),
        ('setup = ["echo no such module >&2", "exit 1"]', "and said last: no such module"),
    ],
)  # fmt: skip
def test_a_job_that_can_not_be_says_why_and_leaves_nothing(hpc, slurm, lines, told):
    keys = [line.partition(" = ")[0] for line in lines.splitlines()]
    kept = [line for line in PROFILE.splitlines() if line.partition(" = ")[0] not in keys]
    (hpc / "scalekit.toml").write_text("\n".join([*kept, lines]))
    notebook = write_notebook(hpc / "tell.ipynb", TELL)
    with pytest.raises(ClusterError) as error:
        sk.run(notebook, profile="hpc")
    assert str(error.value).startswith("profile 'hpc': ") and told in str(error.value)
    (row,) = Store(hpc / "runs", hpc).list_runs()
    assert row["state"] == "failed" and told in row["error"]


def test_a_run_that_waits_in_the_queue_says_for_what_and_ctrl_c_ends_it_in_order(hpc, slurm):
    subprocess.run(["sbatch", "-o", "/dev/null", "--gres=gpu:2", "--wrap", "sleep 600"], check=True)
    wait_until(lambda: "RUNNING" in "".join(list_queue(slurm)))
    notebook = write_notebook(hpc / "tell.ipynb", TELL)
    log = hpc / "log"
    with open(log, "w") as said:
        words = [SCALEKIT, "run", str(notebook), "--profile", "hpc"]
        process = subprocess.Popen(words, stderr=said, stdout=said)
        wait_until(lambda: "waiting for Slurm: Resources" in log.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 1
    (row,) = Store(hpc / "runs", hpc).list_runs()
    assert row["state"] == "cancelled"
    assert [line.split()[1] for line in list_queue(slurm)] == ["wrap"]
    subprocess.run(["scancel", "--user", "root"], check=True)


def test_after_a_kill_of_its_process_no_job_stays_and_the_run_is_known_to_be_lost(hpc, slurm):
    notebook = write_notebook(hpc / "slow.ipynb", FIRST_TIME_WAITS)
    process = start_scalekit("run", notebook, "--profile", "hpc")
    wait_until((hpc / "been").exists)
    process.kill()
    process.communicate()
    wait_until(lambda: list_queue(slurm) == [])
    (row,) = sk.runs(hpc / "runs").to_dict("records")
    assert row["state"] == "failed" and "lost" in row["error"]
    (left,) = (hpc / "shared").iterdir()  # nobody could take it away; the next cluster will
    shutil.rmtree(left)


def test_a_cluster_grows_and_shrinks_by_jobs(hpc, slurm):
    left = hpc / "shared" / f"slurm-{socket.gethostname()}-{2**22 + 1}-of-a-killed-process"
    left.mkdir(parents=True)
    with open_cluster("hpc") as cluster:
        assert not left.exists()
        cluster.scale(2)
        cluster.wait()
        assert (cluster.n_slots, len(list_queue(slurm))) == (2, 2)
        busy = cluster.client.submit(time.sleep, 300, workers=[cluster.slots[1].worker], pure=False)
        wait_until(lambda: any(cluster.client.processing().values()))
        cluster.scale(1)
        wait_until(lambda: len(list_queue(slurm)) == 1 and cluster.n_slots == 1)
        assert busy.status == "pending" and any(cluster.client.processing().values())


def test_a_worker_that_died_gets_a_successor(hpc, slurm):
    with open_cluster("hpc") as cluster:
        (first,), (job,) = cluster.slots, list_queue(slurm)
        (nanny,) = cluster.client.run(os.getppid).values()
        os.kill(nanny, signal.SIGKILL)
        wait_until(lambda: cluster.n_slots == 1 and cluster.slots[0].worker != first.worker)
        assert list_queue(slurm) != [job]


def test_gpus_of_slurm_are_dealt_out_by_slurm(hpc):
    notebook = write_notebook(hpc / "tell.ipynb", ("me = 0", "parameters"), TELL)
    with pytest.raises(BadShare, match="Say in the profile: gpus = 2"):
        sk.sweep(notebook, me=[0], gpus_per_trial=2, profile="hpc")


def test_a_machine_without_slurm_or_dask_jobqueue_says_what_is_missing(hpc, monkeypatch):
    monkeypatch.setenv("PATH", str(hpc))
    with pytest.raises(ClusterError, match="Slurm's command sbatch must be on the PATH"):
        open_cluster("hpc")
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    with pytest.raises(MissingPackage, match=r"pip install 'scalekit\[slurm\]'"):
        open_cluster("hpc")


def test_a_controller_that_is_away_is_said_in_a_sentence(hpc, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", os.devnull)
    with pytest.raises(ClusterError, match="'hpc': Slurm must answer on this machine, got from sinfo"):
        open_cluster(load_settings().get_profile("hpc"))


def test_keys_of_slurm_are_checked_like_all_others(place):
    (place / "scalekit.toml").write_text('[profiles.hpc]\nkind = "slurm"\nqueue = "gpu"\n')
    with pytest.raises(ConfigError, match="unknown key 'queue'. Did you mean 'partition'?"):
        load_settings()


def test_a_job_of_the_daemon_runs_on_slurm_also_when_the_daemon_is_gone(hpc, slurm):
    env = 'env = { COLOUR = "deep blue" }'
    profile_with(hpc, f'{env}\n[job.nightly]\nnotebook = "slow.ipynb"\nprofile = "hpc"\n')
    write_notebook(hpc / "slow.ipynb", FIRST_TIME_WAITS.replace("300 * first", "3"), TELL)
    daemon = start_scalekit("serve")
    assert subprocess.run([SCALEKIT, "trigger", "nightly"], capture_output=True).returncode == 0
    wait_until((hpc / "been").exists)
    daemon.kill()
    daemon.communicate()
    wait_until(lambda: Store(hpc / "runs", hpc).list_runs(state="succeeded"))
    (row,) = Store(hpc / "runs", hpc).list_runs()
    assert str(row["metrics"]["gpu"]) in "01" and row["metrics"]["colour"] == "deep blue"
    (firing,) = JobBook(hpc / "runs").list_firings()
    wait_until(lambda: JobBook(hpc / "runs").get_firing(firing.firing_id).state == "succeeded")
