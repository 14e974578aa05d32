"""Ranks on a real cluster of two workers: real processes, real gloo, real signals."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from faults import can_mount, fill, small_disk
from notebooks import write_notebook
from processes import start_scalekit, wait_until

import scalekit as sk
from scalekit.bundle import create_bundle
from scalekit.cluster import Cluster
from scalekit.config import Preemption
from scalekit.events import StoreError
from scalekit.execute import request_stop
from scalekit.ranks.attempts import NotEnoughWorkers, OutOfMemory
from scalekit.ranks.child import RankOrder
from scalekit.ranks.launcher import LaunchError, launch
from scalekit.ranks.supervise import Supervisor
from scalekit.ranks.travel import CannotTravel, pack_call, unpack_value
from scalekit.ranks.world import current_world, read_fence


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    "A cluster of two workers, and a warm server with torch"
    with pytest.MonkeyPatch.context() as patch, sk.open_cluster("cpu", n_workers=2) as cluster:
        patch.setenv("SCALEKIT_PRELOAD", "torch")
        patch.setenv("SCALEKIT_LINGER", "20")
        patch.chdir(tmp_path_factory.mktemp("ranks"))
        yield cluster


@pytest.fixture
def begin(team, tmp_path):
    "Launch on the team; afterwards no process of a rank may live"

    def begin(function, *args, **options):
        def train(*args):
            (tmp_path / f"pid-{current_world().attempt}-{current_world().rank}").write_text(str(os.getpid()))
            return function(*args)

        wanted = {"n_ranks": 2, "cluster": team, "quiet": True, "folder": tmp_path / "checkpoints"}
        return launch(train, *args, **(wanted | options))

    yield begin
    assert [pid for pid in _list_pids(tmp_path) if _lives(pid)] == []


def _list_pids(folder: Path) -> list[int]:
    return [int(text) for path in folder.glob("pid-*") if (text := path.read_text())]  # or just being written


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _make_order() -> RankOrder:
    return RankOrder(
        launch="alone", attempt=1, rank=0, size=1, address="", process=("", 0), gpus=(), threads=1,
        host="127.0.0.1", heartbeat=60.0, timeout=60.0, work_folder="/",
    )  # fmt: skip


def _wait_for(team: Cluster, n: int) -> None:
    wait_until(lambda: len(team.slots) >= n, every=0.05)


# What comes back


def test_every_rank_does_its_part_and_the_value_of_rank_0_comes_back(begin, capsys):
    class Net:  # as a cell defines it
        def __init__(self, total):
            self.total = total

    def train(factor):
        import torch

        world = current_world()
        total = torch.full((2,), factor * (world.rank + 1.0))
        torch.distributed.all_reduce(total)
        print("I am", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
        assert world.control.gather("names", str(world.rank).encode()) == [b"0", b"1"]
        return Net(total), world.rank, world.size, torch.get_num_threads()

    net, *about = begin(train, 2.0)
    assert net.total.tolist() == [6.0, 6.0]
    assert about == [0, 2, max(1, len(os.sched_getaffinity(0)) // 2)]
    out = capsys.readouterr().out
    assert "[rank 0] I am 0 of 2\n" in out and "[rank 1] I am 1 of 2\n" in out


def test_one_rank_on_a_cluster_needs_no_process_group(begin):
    def train():
        import torch

        return torch.distributed.is_initialized(), os.getpid()

    initialised, pid = begin(train, n_ranks=1)
    assert not initialised and pid != os.getpid()


def test_one_rank_without_a_cluster_is_this_process(tmp_path):
    assert launch(os.getpid, folder=tmp_path) == os.getpid()
    assert read_fence(tmp_path) == 1


@pytest.mark.skipif(not can_mount, reason="only root can mount a disk")
def test_a_full_disk_names_the_argument_by_which_its_folder_was_chosen(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        fill(disk, but=0)
        with pytest.raises(StoreError, match=r"can't be noted.*disk is full.*by launch\(.*folder="):
            launch(os.getpid, folder=disk / "checkpoints")


def test_a_rank_may_have_loader_workers_of_its_own(begin):
    def train():
        import torch

        loader = torch.utils.data.DataLoader(list(range(8)), batch_size=4, num_workers=1)
        return sum(int(batch.sum()) for batch in loader)

    assert begin(train) == 28


def test_two_launches_at_once_take_turns(begin):
    def train():
        time.sleep(0.2)
        return begin_time, time.time()

    begin_time, spans = time.time(), []
    threads = [threading.Thread(target=lambda: spans.append(begin(train, folder=None))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(spans) == 2


# What is wrong with a call is said before anything starts


def test_a_function_that_was_called_already_is_not_taken_for_one():
    with pytest.raises(LaunchError, match="it is given uncalled, got NoneType. Write launch"):
        sk.launch(None, n_ranks=2)


@pytest.mark.parametrize(
    "options, kind, sentence",
    [
        ({"n_ranks": 3}, NotEnoughWorkers, "n_ranks=3, and Cluster.* has 2 workers"),
        ({"n_ranks": "two"}, LaunchError, "n_ranks is a whole number from 1 on"),
        ({"n_ranks": True}, LaunchError, "n_ranks is a whole number from 1 on"),
        ({"retries": -1}, LaunchError, "retries must be a number"),
    ],
)
def test_a_launch_that_cannot_be_meant_starts_nothing(begin, tmp_path, options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        begin(print, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_cannot_travel_is_named(begin):
    lock = threading.Lock()

    def train():
        return lock.locked()

    with pytest.raises(CannotTravel, match="variable 'lock' of function 'train' can't travel .*_thread.lock"):
        begin(train)


# Ranks that fail


def test_the_error_that_came_first_is_shown_with_its_traceback(begin, capsys):
    def train():
        import torch

        world = current_world()
        world.beat(4)
        if world.rank == 1:
            raise ValueError("a bad batch")
        torch.distributed.all_reduce(torch.ones(1))

    with pytest.raises(
        sk.RankFailed, match=r"rank 1 of 2 raised after step 4, as in the attempt before"
    ) as caught:
        begin(train)
    assert 'raise ValueError("a bad batch")' in str(caught.value) and "ValueError: a bad batch" in str(
        caught.value
    )
    assert isinstance(caught.value.__cause__, ValueError)
    assert capsys.readouterr().out.count("Starting again") == 1  # the second time the same is no accident


def test_a_mistake_in_the_code_is_not_tried_again(begin, capsys):
    with pytest.raises(sk.RankFailed, match="NameError: name 'mispelt' is not defined"):
        begin(lambda: mispelt)  # noqa: F821
    assert "Starting again" not in capsys.readouterr().out


@pytest.mark.parametrize("end", ["raise", "exit", "kill", "stop"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_is_replaced_and_the_training_ends_well(begin, tmp_path, capsys, rank, end):
    def train():
        import torch

        world = current_world()
        if world.attempt == 1 and world.rank == rank:
            if end == "raise":
                raise RuntimeError("the disk was away")
            if end == "exit":
                os._exit(7)
            os.kill(os.getpid(), signal.SIGKILL if end == "kill" else signal.SIGSTOP)
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        return world.attempt, total.item()

    assert begin(train, heartbeat=2.0 if end == "stop" else 60.0) == (2, 2.0)
    told = {"raise": "raised", "exit": "exited", "kill": "killed", "stop": "hung"}[end]
    assert f"rank {rank} of 2 {told}" in capsys.readouterr().out
    assert read_fence(tmp_path / "checkpoints") == 2


def test_the_rank_that_others_wait_for_is_to_blame(begin):
    def train():
        import torch

        world = current_world()
        world.beat(5 - world.rank)
        if world.rank == 1:
            time.sleep(600)
        torch.distributed.all_reduce(torch.ones(1))

    with pytest.raises(sk.RankFailed, match="1 of 2 hung, last heard of after step 4.*Rank 0 waited for it"):
        begin(train, timeout=3.0, retries=0)


@pytest.mark.parametrize("replace, size", [("shrink", 1), ("wait", 2)])
def test_a_killed_worker_is_replaced_or_done_without(begin, team, replace, size):
    _wait_for(team, 2)
    pids = [slot.process[1] for slot in team.slots]

    def train():
        world = current_world()
        if world.attempt == 1:
            if world.rank == 0:
                os.kill(pids[0], signal.SIGKILL)
            time.sleep(600)
        return world.attempt, world.size

    assert begin(train, replace=replace) in [(2, size), (2, 2)]
    _wait_for(team, 2)


def test_a_worker_that_does_not_answer_is_done_without_and_its_rank_ends_itself(begin, team, tmp_path):
    _wait_for(team, 2)
    stopped = team.slots[0]

    def train():
        world = current_world()
        if world.attempt == 1:
            if world.rank == 0:
                os.kill(stopped.process[1], signal.SIGSTOP)
            time.sleep(600)
        return world.attempt, world.size

    try:
        assert begin(train, replace="shrink", heartbeat=2.0) == (2, 1)
        wait_until(lambda: not any(map(_lives, _list_pids(tmp_path))))  # with its worker still stopped
    finally:
        os.kill(stopped.process[1], signal.SIGCONT)


def test_memory_that_runs_out_is_named_and_half_the_batch_is_tried_once(begin):
    def train(limit):
        import torch

        world = current_world()
        world.beat(3, batch_size=64)
        if world.rank == 1 and 64 // world.shrink > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        world.control.barrier("fits")
        return world.shrink

    with pytest.warns(
        UserWarning, match="rank 1 ran out of memory with batch_size=64. Once more with half of it"
    ):
        assert begin(train, 32) == 2
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory, match="batch_size=64, also with half of it"):
        begin(train, 16)


# Leaving


@pytest.mark.parametrize("how", ["file", "signal"])
def test_ranks_that_are_asked_to_leave_end_as_preempted(begin, tmp_path, monkeypatch, how):
    notice = tmp_path / "notice"
    (tmp_path / "scalekit.toml").write_text(f'[preemption]\nfile = "{notice}"\nevery = 0.1\n')
    monkeypatch.chdir(tmp_path)

    def train():
        world = current_world()
        if world.rank == 0:
            notice.touch() if how == "file" else os.kill(os.getpid(), signal.SIGTERM)
        while world.notice() is None:
            time.sleep(0.01)
        raise sk.Preempted(f"saved at step 12: {world.notice()}")

    with pytest.raises(sk.Preempted, match="saved at step 12: (SIGTERM|preemption notice in)"):
        begin(train, timeout=60)


def test_ranks_hear_that_the_run_around_them_has_to_make_room(begin, tmp_path, monkeypatch):
    bundle = create_bundle(tmp_path / "20260501-120000-123-9f2c1a", {"notebook": "train.ipynb"})
    monkeypatch.setenv("SCALEKIT_BUNDLE", str(bundle.path))

    def train():
        world = current_world()
        if world.rank == 0:
            request_stop(bundle, "preempted")
            time.sleep(600)
        while world.notice() is None:  # this rank has no bundle: it is told
            time.sleep(0.01)
        raise sk.Preempted(world.reason)

    with pytest.raises(sk.Preempted, match="the run was asked to make room"):
        begin(train)
    assert not (bundle.path / "training").exists()


def test_a_killed_notebook_leaves_no_ranks(team, tmp_path):
    script = """
        import os, sys, time
        from pathlib import Path
        import scalekit as sk

        def train(folder):
            (Path(folder) / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
            time.sleep(600)

        sk.launch(train, sys.argv[2], n_ranks=2, cluster=sys.argv[1])
        """
    command = [sys.executable, "-c", textwrap.dedent(script), team.address, str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(_list_pids(tmp_path)) == 2)
    driver.kill()
    driver.wait()
    pids = _list_pids(tmp_path)
    wait_until(lambda: not any(map(_lives, pids)))


def test_without_a_warm_server_a_rank_starts_cold(monkeypatch):
    from scalekit.kernels.connection import NoWarmKernel

    def refuse(*words):
        raise NoWarmKernel("there is none")

    monkeypatch.setattr("scalekit.ranks.supervise.start_program", refuse)
    notes = []
    supervisor = Supervisor(
        _make_order(), lambda kind, **words: notes.append(words.get("text")), lambda: True
    )
    value, failure = supervisor.run(pack_call(lambda: os.environ["WORLD_SIZE"], [], {}), Preemption())
    assert (unpack_value(value), failure) == ("1", None)
    assert "rank 0 starts cold: there is none" in notes


def test_a_kill_for_want_of_memory_is_told_as_such(monkeypatch):
    monkeypatch.setattr("scalekit.ranks.supervise.count_memory_kills", lambda: 4)
    supervisor = Supervisor(_make_order(), lambda *words, **more: None, lambda: True)
    kinds = [supervisor._explain_death(-signal.SIGKILL, before).kind for before in (3, 4)]
    assert kinds == ["memory", "killed"]


def test_a_scheduler_that_is_restarted_is_named(begin, team, tmp_path):
    def train():
        time.sleep(600)

    def restart_once_it_trains():
        wait_until(lambda: _list_pids(tmp_path))
        own.client.restart()

    told = "scheduler must go on while ranks work|its worker .* is gone"
    with sk.open_cluster("cpu", n_workers=1) as own:
        restart = threading.Thread(target=restart_once_it_trains)
        restart.start()
        with pytest.raises(sk.ScaleKitError, match=told):
            begin(train, n_ranks=1, cluster=own, retries=0)
        restart.join(120)


# A run that has to make room


LEAVING = """
def train():
    world = sk.current_world()
    (place / "begun").touch()
    while not (place / "again").exists():
        if reason := world.notice():
            (place / "again").touch()
            raise sk.Preempted(f"saved at step 7: {reason}")
        time.sleep(0.01)
    return "done"

sk.record(end=sk.launch(train))
"""


def test_a_run_that_is_told_to_end_lets_its_training_save_and_is_taken_up_again(place):
    write_notebook(
        place / "train.ipynb",
        "import time\nfrom pathlib import Path\nimport scalekit as sk\nplace = Path()",
        LEAVING,
    )
    process = start_scalekit("run", "train.ipynb")
    wait_until((place / "begun").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    (first,) = sk.runs().to_dict("records")
    assert process.returncode == 1 and first["state"] == "preempted"
    assert first["error"].startswith("Preempted: saved at step 7: the run was asked to make room")
    assert not list((place / "runs" / first["run_id"]).glob("training"))
    again = sk.run("train.ipynb", resume="latest")
    assert (again.state, again.metrics["end"]) == ("succeeded", "done")


def test_an_attempt_that_was_taken_for_dead_can_not_make_a_checkpoint_valid(tmp_path):
    import torch

    from scalekit.ranks.world import Superseded, World, raise_fence
    from scalekit.train.saver import Saver

    old = World(0, 1, attempt=raise_fence(tmp_path), folder=tmp_path)
    saver = Saver(tmp_path, old, asynchronous=False)
    saver.save(1, {"weight": torch.ones(1)}, {}, {})
    raise_fence(tmp_path)
    with pytest.raises(Superseded, match="attempt 2 writes here now, and this is attempt 1"):
        saver.save(2, {"weight": torch.zeros(1)}, {}, {})
    with Saver(tmp_path, World(0, 1, attempt=2, folder=tmp_path)) as newer:
        assert newer.load().step == 1


def test_a_launched_training_goes_on_after_a_kill_and_tells_each_point_once(begin, tmp_path, monkeypatch):
    def train():
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        model, x = torch.nn.Linear(4, 1), torch.arange(80.0).reshape(20, 4) / 80
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"batch_size": 4, "n_epochs": 2, "checkpoint_every": 3, "log_every": 1}
        with sk.training(model, optimizer, (x, x.sum(1, keepdim=True)), **options) as job:
            for batch in job:
                job.step((job.model(batch.x) - batch.y).square().mean())
                job.log(score=job.n_steps)
                world = job.world
                if world.size == 2 and world.attempt == world.rank == 1 and job.n_steps == 8:
                    while [event["event"] for event in bundle.events()].count("checkpoint") < 2:
                        time.sleep(0.01)
                    os.kill(os.getpid(), signal.SIGKILL)
        return model.weight.tolist(), world.attempt

    bundle = create_bundle(tmp_path / "20260501-120000-123-9f2c1a", {"notebook": "train.ipynb"})
    with monkeypatch.context() as patch:
        patch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
        weights, attempt = begin(train)
    assert (attempt, weights[0]) == (2, pytest.approx(launch(train, folder=None)[0][0], rel=1e-6))
    curves = bundle.curves()
    assert [step for step, _ in curves["loss"]] == list(range(1, 11))
    assert curves["score"] == [(step, step) for step in range(1, 11)]
    saved = [event["step"] for event in bundle.events() if event["event"] == "checkpoint"]
    assert sorted(set(saved)) == [3, 6, 9, 10]
