"""A real Slurm on loopback: a controller, and a node whose GPUs are clones of /dev/null; no munge."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from processes import free_port

_DAEMONS = ("slurmctld", "slurmd")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MpiDefault=none
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 Gres=gpu:fake:{n_gpus} State=UNKNOWN
DefMemPerCPU=500
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={host} MaxTime=1 State=UP
"""


def why_no_slurm() -> str:
    "Why no Slurm can be started here; empty where it can"
    missing = [name for name in (*_DAEMONS, "sbatch") if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"Slurm is not installed here: no {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "only root can start slurmd and make devices"


@contextmanager
def start_slurm(
    folder: Path,  # Its configuration, state and logs
    n_gpus: int = 2,
) -> Iterator[dict[str, str]]:  # The environment in which sbatch and squeue find it
    "Slurm with an idle node; its jobs and daemons have ended afterwards"
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool", "log"):
        (folder / name).mkdir(parents=True)
    for number in range(n_gpus):
        os.mknod(folder / f"gpu{number}", 0o20666, os.makedev(1, 3))  # slurmd wants character devices
    controller_port, node_port = free_port(), free_port()
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(
            host=host, folder=folder, n_gpus=n_gpus, controller_port=controller_port, node_port=node_port
        )
    )
    (folder / "gres.conf").write_text(
        f"NodeName={host} Name=gpu Type=fake File={folder}/gpu[0-{n_gpus - 1}]\n" if n_gpus else ""
    )
    environ = {"SLURM_CONF": str(conf), "PATH": _search_path()}
    started = [_start(name, folder, environ) for name in _DAEMONS]
    try:
        _wait_for_node({**os.environ, **environ}, folder)
        yield environ
    finally:
        _stop(started, {**os.environ, **environ})


def list_queue(environ: dict[str, str]) -> list[str]:
    "Jobs that Slurm has not done with: number, name and state"
    words = ["squeue", "-h", "-o", "%i %j %T"]
    told = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


def _search_path() -> str:
    "Debian keeps daemons where only root looks"
    return f"{os.environ['PATH']}:/usr/sbin"


def _start(name: str, folder: Path, environ: dict[str, str]) -> subprocess.Popen:
    with open(folder / "log" / name, "w") as log:
        words = [name, "-D", "-f", environ["SLURM_CONF"]]
        outputs = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(words, env={**os.environ, **environ}, **outputs)


def _wait_for_node(environ: dict[str, str], folder: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        told = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environ, capture_output=True, text=True)
        if "idle" in told.stdout:
            return
        time.sleep(0.1)
    logs = "\n".join((folder / "log" / name).read_text()[-1500:] for name in _DAEMONS)
    raise RuntimeError(f"Slurm's node did not become idle:\n{logs}")


def _is_step(process: psutil.Process, conf: str) -> bool:
    "Steps of jobs leave the daemon that started them"
    try:
        return process.info["name"] == "slurmstepd" and process.environ().get("SLURM_CONF") == conf
    except psutil.Error:
        return False


def _stop(daemons: list[subprocess.Popen], environ: dict[str, str]) -> None:
    "Cancel what is left, then end the daemons and the steps that they have started, each by its number"
    subprocess.run(["scancel", "--user", "root"], env=environ, capture_output=True, timeout=120)
    end = time.monotonic() + 60
    while list_queue(environ) and time.monotonic() < end:
        time.sleep(0.1)
    alive = [psutil.Process(daemon.pid) for daemon in daemons if daemon.poll() is None]
    steps = [one for one in psutil.process_iter(["name"]) if _is_step(one, environ["SLURM_CONF"])]
    for daemon in daemons:
        daemon.terminate()
    _, alive = psutil.wait_procs([*alive, *steps], timeout=30)
    for process in alive:
        process.kill()
    for daemon in daemons:
        daemon.wait()
