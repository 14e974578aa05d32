"""Clusters on cores: what is opened, who can reach it, what dies with whom."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Event

import scalekit.cluster
import scalekit.workers
from scalekit.cluster import open_cluster
from scalekit.config import UnknownProfile
from scalekit.devices import n_cores
from scalekit.profile import Profile
from scalekit.rules import ConfigError
from scalekit.security import write_certificates
from scalekit.workers import ClusterError, private_folder


@pytest.fixture(scope="module")
def cluster():
    with open_cluster("cpu", n_workers=2) as cluster:
        yield cluster


def wait_until(holds, seconds=120):
    "Whether `holds()` becomes true in time"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def about_worker():
    "Facts that a worker tells about itself"
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "folder": os.getcwd(),
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


# What is opened


def test_tasks_run_in_processes_of_their_own(cluster):
    pids = {
        cluster.client.submit(os.getpid, pure=False, workers=[slot.worker]).result() for slot in cluster.slots
    }
    assert len(pids) == 2 and os.getpid() not in pids


def test_slots_share_the_cores_and_own_no_gpu(cluster):
    assert cluster.n_slots == 2
    assert [(slot.gpus, slot.uuids, slot.threads) for slot in cluster.slots] == 2 * [
        ((), (), max(1, n_cores() // 2))
    ]


def test_workers_on_cores_see_no_gpu(cluster):
    assert [facts["cuda"] for facts in cluster.client.run(about_worker).values()] == ["", ""]


def test_workers_and_scheduler_look_seldom_and_other_clusters_of_this_process_as_before(cluster):
    names = ["distributed.worker.profile.interval", "distributed.admin.tick.interval"]
    told = cluster.client.run(lambda: [dask.config.get(name) for name in names])
    assert list(told.values()) == [["100ms", "200ms"]] * 2
    assert cluster._local.scheduler._tick_interval == 0.2
    assert [dask.config.get(name) for name in names] == ["10ms", "20ms"]


def test_the_same_cluster_opens_inside_an_event_loop():
    async def cell():
        with open_cluster("cpu", n_workers=1) as cluster:
            return cluster.client.submit(sum, [1, 2, 3]).result(), cluster.n_slots, cluster.dashboard_link

    total, n_slots, link = asyncio.run(cell())
    assert (total, n_slots) == (6, 1) and link.startswith("http://127.0.0.1:")


def test_a_profile_of_the_file_is_opened_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "scalekit.toml").write_text(
        'profile = "etl"\n[profiles.etl]\nslots = "data"\nworkers = 1\nthreads = 2'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that "auto" means cores, on any machine
    with open_cluster() as cluster:
        assert (cluster.profile.name, cluster.n_slots) == ("etl", 2)


def test_memory_is_shared_out_or_as_the_profile_says(cluster):
    limits = {info["memory_limit"] for info in cluster._workers().values()}
    assert limits == {scalekit.workers.total_memory() // 2}
    with open_cluster(Profile("small", kind="cpu", workers=1, memory_limit="500 MB")) as small:
        assert [info["memory_limit"] for info in small._workers().values()] == [500_000_000]


def test_usage_tells_how_busy_each_worker_is(cluster):
    end = Event("end", client=cluster.client)
    busy = cluster.client.submit(lambda: Event("end").wait(), workers=[cluster.slots[0].worker])
    assert wait_until(lambda: cluster.usage()[0].n_tasks == 1)
    first, second = cluster.usage()
    assert (first.worker, second.n_tasks, second.gpus, second.gpu_memory) == (
        cluster.slots[0].worker,
        0,
        (),
        None,
    )
    assert first.memory > 2**24
    end.set()
    busy.result()


def test_a_cluster_shows_itself_in_text_and_html(cluster):
    assert repr(cluster) == f"Cluster('cpu', 2 workers, {cluster.address})"
    page = cluster._repr_html_()
    assert cluster.dashboard_link in page and page.count("<tr>") == 3 and "GPU" not in page


def test_the_dashboard_opens_with_the_first_look_and_its_link_is_right(cluster):
    with urllib.request.urlopen(cluster.dashboard_link) as answer:
        assert answer.status == 200 and b"Dask" in answer.read()
    assert cluster.dashboard_link == cluster.dashboard_link


def test_two_clusters_at_a_time_have_two_dashboards(cluster, recwarn):
    with open_cluster("cpu", n_workers=1) as other:
        assert other.dashboard_link != cluster.dashboard_link
    assert not recwarn.list


@pytest.mark.parametrize("n_workers", [0, -1, 1.5, "2"])
def test_a_wrong_number_of_workers_is_refused_before_any_starts(n_workers):
    with pytest.raises(ConfigError, match="workers must be a whole number of at least 1, got"):
        open_cluster("cpu", n_workers=n_workers)


def test_an_unknown_profile_is_refused_before_any_starts():
    with pytest.raises(UnknownProfile, match="Did you mean 'cpu'?"):
        open_cluster("cpus")


# Scaling


def test_scaling_down_spares_the_busy_worker():
    with open_cluster("cpu", n_workers=2) as cluster:
        last = cluster.slots[1].worker
        busy = cluster.client.submit(time.sleep, 300, workers=[last])
        assert wait_until(lambda: any(row.n_tasks for row in cluster.usage()))
        cluster.scale(1)
        assert [slot.worker for slot in cluster.slots] == [last]
        assert busy.status == "pending"
        cluster.scale(2)
        assert cluster.n_slots == 2
        cluster.scale(0)
        assert cluster.slots == []


def test_a_killed_worker_is_replaced():
    with open_cluster("cpu", n_workers=1) as cluster:
        (before,) = cluster.slots
        os.kill(cluster.client.submit(os.getpid).result(), signal.SIGKILL)
        assert wait_until(lambda: [slot.worker for slot in cluster.slots] not in ([], [before.worker]))
        assert cluster.client.submit(sum, [1, 2]).result() == 3


# Attaching


def test_attaching_gives_the_same_object_and_leaves_the_cluster_alive(cluster):
    with open_cluster(cluster.address) as attached:
        assert attached.slots == cluster.slots
        assert attached.dashboard_link == cluster.dashboard_link
        assert attached.client.submit(sum, [4, 5]).result() == 9
        with pytest.raises(ClusterError, match="was started elsewhere: scale it there"):
            attached.scale(3)
    assert cluster.client.submit(sum, [1, 2]).result() == 3
    assert cluster.n_slots == 2


def test_an_address_where_nobody_answers_is_one_sentence(monkeypatch):
    monkeypatch.setattr(scalekit.cluster, "PATIENCE", 0.5)
    with pytest.raises(
        ClusterError, match="a Dask scheduler must answer at tcp://127.0.0.1:9, got: .*Start one with"
    ):
        open_cluster("tcp://127.0.0.1:9")


def test_attaching_in_the_clear_over_a_network_is_seen(monkeypatch):
    monkeypatch.setattr(scalekit.cluster, "PATIENCE", 0.2)
    with pytest.warns(UserWarning, match="is not encrypted"), pytest.raises(ClusterError):
        open_cluster("tcp://192.0.2.1:8786")  # an address that is never used


def test_an_attached_cluster_takes_no_number_of_workers(cluster):
    with pytest.raises(ConfigError, match="leave workers out"):
        open_cluster(cluster.address, n_workers=2)


def test_a_scheduler_that_dies_is_one_sentence_and_closing_still_works(start, monkeypatch):
    main, _ = start("print(cluster.address, flush=True); time.sleep(600)")
    attached = open_cluster(main.stdout.readline().strip())
    monkeypatch.setattr(scalekit.cluster, "PATIENCE", 1)
    main.kill()
    main.wait()
    with pytest.raises(ClusterError, match=f"{attached.address}: the scheduler must answer and is gone"):
        attached.slots  # noqa: B018
    assert "gone" in repr(attached) and "gone" in attached._repr_html_()
    attached.close()


# Who can reach it


def test_everything_listens_on_loopback(start):
    main, _ = start("print(cluster.dashboard_link, flush=True); time.sleep(600)")
    main.stdout.readline()
    family = [psutil.Process(main.pid), *psutil.Process(main.pid).children(recursive=True)]
    sockets = [socket for process in family for socket in process.net_connections("inet")]
    hosts = [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]
    assert len(hosts) >= 8  # scheduler, its pages, two nannies, two workers and their pages
    assert set(hosts) == {"127.0.0.1"}


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory):
    "A cluster that other machines could join, and the certificates for that"
    paths = {key: str(path) for key, path in write_certificates(tmp_path_factory.mktemp("tls")).items()}
    with open_cluster(Profile("team", kind="cpu", workers=1, host="0.0.0.0", **paths)) as cluster:
        yield cluster, paths


def test_beyond_loopback_processes_talk_by_tls(open_to_all):
    cluster, _ = open_to_all
    assert {cluster.address[:6], cluster.slots[0].worker[:6]} == {"tls://"}
    assert cluster.client.submit(sum, [1, 2]).result() == 3


def test_beyond_loopback_the_pages_stay_on_loopback(open_to_all):
    cluster, _ = open_to_all
    assert cluster.dashboard_link.startswith("http://127.0.0.1:")
    pages = {cluster.client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.http_server.address)}
    pages |= set(cluster.client.run(lambda dask_worker: dask_worker.http_server.address).values())
    assert pages == {"127.0.0.1"}


def test_others_join_with_the_certificates_only(open_to_all, monkeypatch):
    cluster, paths = open_to_all
    with open_cluster(Profile("team", kind="address", address=cluster.address, **paths)) as joined:
        assert joined.client.submit(sum, [2, 3]).result() == 5
    monkeypatch.setattr(scalekit.cluster, "PATIENCE", 2)
    with pytest.raises(ConfigError, match="needs the certificates of that cluster, got none"):
        open_cluster(cluster.address)
    with pytest.raises(ClusterError), pytest.warns(UserWarning):
        open_cluster(cluster.address.replace("tls", "tcp"))


def test_strangers_certificates_are_refused(open_to_all, tmp_path, monkeypatch):
    cluster, _ = open_to_all
    others = {key: str(path) for key, path in write_certificates(tmp_path).items()}
    monkeypatch.setattr(scalekit.cluster, "PATIENCE", 2)
    with pytest.raises(ClusterError, match="a Dask scheduler must answer"):
        open_cluster(Profile("spy", kind="address", address=cluster.address, **others))


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_loopback_has_other_names(host):
    with open_cluster(Profile("lab", kind="cpu", workers=1, host=host)) as cluster:
        assert cluster.client.submit(sum, [1, 2]).result() == 3
        assert cluster.address.startswith("tcp://")


def test_a_host_that_is_not_here_is_one_sentence():
    with pytest.raises(
        ClusterError, match="a scheduler must start at 192.0.2.1, got OSError: .*of this machine"
    ):
        open_cluster(Profile("lab", kind="cpu", workers=1, host="192.0.2.1"))


def test_without_certificates_a_cluster_makes_its_own():
    with open_cluster(Profile("lab", kind="cpu", workers=1, protocol="tls")) as cluster:
        assert cluster.address.startswith("tls://127.0.0.1:")
        assert cluster.client.submit(sum, [1, 2]).result() == 3


def test_workers_keep_their_files_where_only_their_owner_may_look(cluster):
    folders = cluster.client.run(lambda dask_worker: dask_worker.local_directory).values()
    assert all(Path(folder).is_relative_to(private_folder()) for folder in folders)
    assert private_folder().stat().st_mode & 0o077 == 0


def test_a_private_folder_that_somebody_else_made_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"scalekit-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"scalekit-{os.getuid()}").chmod(0o777)
    assert private_folder().name != f"scalekit-{os.getuid()}"
    assert private_folder().stat().st_mode & 0o077 == 0


# What dies with whom

OPEN = """
import os, time
from scalekit.cluster import open_cluster

if __name__ == "__main__":
    cluster = open_cluster("cpu", n_workers=2)
    print(*cluster.client.run(os.getpid).values(), flush=True)
"""


@pytest.fixture
def run_script(tmp_path):
    "Function that runs a script in a session of its own"
    started = []

    def run_script(text):
        script = tmp_path / "script.py"
        script.write_text(text)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, script], start_new_session=True, **pipes))
        return started[-1]

    yield run_script
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start(run_script):
    "Function that runs a script which opens a cluster, and waits for the pids of its workers"

    def start(then):
        process = run_script(OPEN + textwrap.indent(textwrap.dedent(then), "    "))
        return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]

    return start


def gone(processes):
    "Whether all of `processes` end in time; a dead one may wait for its parent to notice"
    return wait_until(lambda: not any(alive(process) for process in processes))


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_a_killed_main_process(start, sent):
    main, workers = start("time.sleep(600)")
    family = psutil.Process(main.pid).children(recursive=True)
    assert len(workers) == 2 and set(workers) <= set(family)
    main.send_signal(sent)
    assert gone(family)


def test_ctrl_c_ends_all_in_order_and_without_a_page_of_errors(start):
    main, workers = start(
        """
        with cluster:
            future = cluster.client.submit(time.sleep, 60)
            try:
                print("ready", flush=True)
                while True:
                    time.sleep(0.1)  # one long sleep can begin after the signal, and never see it
            except KeyboardInterrupt:
                print("alive:", cluster.n_slots)
        """
    )
    main.stdout.readline()
    os.killpg(main.pid, signal.SIGINT)
    out, errors = main.communicate(timeout=120)
    assert (main.returncode, out, errors) == (0, "alive: 2\n", "")
    assert gone(workers)


def test_a_script_that_forgets_to_close_ends_in_order(start):
    main, workers = start("pass")
    assert (main.wait(120), main.stderr.read()) == (0, "")
    assert gone(workers)


def test_a_task_that_fails_says_nothing_on_the_terminal(start):
    main, _ = start("print(type(cluster.client.submit(lambda: 1 / 0).exception()).__name__); cluster.close()")
    assert main.communicate(timeout=120) == ("ZeroDivisionError\n", "")


def test_an_unguarded_script_is_told_so_and_ends(run_script):
    main = run_script('from scalekit.cluster import open_cluster\nopen_cluster("cpu", n_workers=2)')
    _, errors = main.communicate(timeout=120)
    assert main.returncode == 1
    assert 'script.py must open its cluster under: if __name__ == "__main__":' in errors
    assert errors.count("Traceback") == 1
    assert gone([process for process in psutil.process_iter() if session(process.pid) == main.pid])


def session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_what_a_killed_worker_left_is_cleared_by_the_next(start):
    main, workers = start(
        """
        print(*cluster.client.run(lambda dask_worker: dask_worker.local_directory).values(), flush=True)
        time.sleep(600)
        """
    )
    left = [Path(folder) for folder in main.stdout.readline().split()]
    main.kill()
    assert gone(workers) and all(folder.is_dir() for folder in left)
    with open_cluster("cpu", n_workers=1):
        assert not any(folder.exists() for folder in left)


def test_closing_gives_a_busy_worker_one_second_not_five(monkeypatch):
    granted, end_worker = [], scalekit.workers._end_worker

    def watch(nanny, patience):
        granted.append(patience)
        return end_worker(nanny, patience)

    monkeypatch.setattr(scalekit.workers, "_end_worker", watch)
    with open_cluster("cpu", n_workers=1) as cluster:
        cluster.client.submit(time.sleep, 600)
        assert wait_until(lambda: cluster.usage()[0].n_tasks)
        (slot,) = cluster.slots
    assert granted[0] == 1.0
    assert not psutil.pid_exists(slot.process[1])


@pytest.fixture
def started(monkeypatch):
    "What was started for clusters that are opened from now on"
    locals_, start = [], scalekit.cluster.start_cpu_workers

    def note(spec):
        locals_.append(start(spec))
        return locals_[-1]

    monkeypatch.setattr(scalekit.cluster, "start_cpu_workers", note)
    return locals_


def test_workers_that_nobody_could_close_are_ended(started, monkeypatch):
    def refuse(*_):
        raise ClusterError("gone")

    monkeypatch.setattr(scalekit.cluster, "_ask_scheduler", refuse)
    with pytest.raises(ClusterError, match="gone"):
        open_cluster("cpu", n_workers=1)
    assert [local.status.name for local in started] == ["closed"]


def test_workers_end_also_if_the_client_does_not_close(started, monkeypatch):
    cluster = open_cluster("cpu", n_workers=1)
    close = cluster.client.close

    def fail():
        close()
        raise OSError("the network is gone")

    monkeypatch.setattr(cluster.client, "close", fail)
    with pytest.raises(OSError, match="the network is gone"):
        cluster.close()
    assert [local.status.name for local in started] == ["closed"]


def test_closing_twice_is_harmless():
    cluster = open_cluster("cpu", n_workers=1)
    cluster.close()
    cluster.close()
    assert cluster.client.status == "closed"
