"""What samples of a run tell, and that they never get in its way."""

import os
import subprocess
import sys
import threading
import time

import pytest
from notebooks import write_notebook
from processes import wait_until

import scalekit as sk
from scalekit import sampling
from scalekit.cli import main
from scalekit.devices import Gpu, GpuUsage, n_cores
from scalekit.events import StoreError
from scalekit.sampling import cpu_time, list_tree, memory_of, next_pause, sample_system

pytest_plugins = "gpusim.fixtures"

GRANDCHILD = """
import subprocess, sys, time
code = "import time; data = bytearray(100_000_000); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code])
print("parent", flush=True)
time.sleep(60)
"""


class Told(list):
    "What a sampler tells, and from where"

    def __init__(self):
        self.machine = None

    def __call__(self, event, **fields):
        if event == "machine":
            assert self.machine is None and not self
            self.machine = fields
        else:
            assert event == "system"
            self.append(fields["values"])


def quick(age):
    return 0.02


def samplers():
    return [thread for thread in threading.enumerate() if thread.name == "scalekit-sampling"]


def test_children_of_children_belong_to_the_tree():
    process = subprocess.Popen([sys.executable, "-c", GRANDCHILD], stdout=subprocess.PIPE)
    try:
        assert {process.stdout.readline(), process.stdout.readline()} == {b"parent\n", b"up\n"}
        tree = list_tree(process.pid)
        assert len(tree) == 2 and tree[0] == process.pid
        assert memory_of(tree) > 100_000_000 > memory_of(tree[:1])
    finally:
        for pid in reversed(list_tree(process.pid)):
            os.kill(pid, 9)
        process.communicate()
    assert list_tree(process.pid) == []


def test_cpu_time_of_children_that_ended_is_not_lost():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(20_000_000))']); "
    code += "print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert cpu_time(list_tree(process.pid)) > 0.1
    process.communicate(b"\n")


def test_a_run_tells_what_it_used_and_show_says_so(place, capsys):
    code = """
import time
import scalekit as sk
data, events = bytearray(300_000_000), sk.current_run().path / "events.jsonl"
def count(): return events.read_text().count('"system"')
before, end = count(), time.monotonic() + 1.6
while time.monotonic() < end or count() == before: pass
"""
    write_notebook(place / "a.ipynb", code)
    run = sk.run("a.ipynb")
    samples = [event for event in run.bundle.events() if event["event"] == "system"]
    assert samples
    assert samples[-1]["values"]["memory"] > 300_000_000 and samples[-1]["values"]["cpu"] > 0.0
    assert run.row["system"]["memory"] == max(sample["values"]["memory"] for sample in samples)
    assert sk.runs(where="system.memory > 3e8")["system.memory"].tolist() == [run.row["system"]["memory"]]
    assert samplers() == []
    capsys.readouterr()
    assert main(["show", "latest"]) == 0
    assert "cores on average" in capsys.readouterr().out


def test_a_short_run_has_no_samples_and_does_not_ask_for_gpus(place, monkeypatch):
    monkeypatch.setattr(sampling, "watch_gpus", lambda environment: pytest.fail("NVML was opened"))
    write_notebook(place / "a.ipynb", "1")
    run = sk.run("a.ipynb")
    assert run.row["system"] == {} and samplers() == []


def test_samples_end_with_the_block_and_with_the_process():
    told = Told()
    with sample_system(os.getpid(), {}, told, quick):
        wait_until(lambda: len(told) > 2)
    n = len(told)
    time.sleep(0.1)
    assert len(told) == n and samplers() == []
    told, process = Told(), subprocess.Popen(["sleep", "60"])
    with sample_system(process.pid, {}, told, quick):
        wait_until(lambda: told)
        process.kill()
        process.wait()
        wait_until(lambda: samplers() == [])


def test_gpus_are_numbered_as_the_notebook_sees_them(monkeypatch):
    gpus = [Gpu(index, f"GPU-{index}", "H100", 80 * 2**30, (), str(index)) for index in (3, 1)]
    usages = [GpuUsage(gpus[0], 50, 2**30), GpuUsage(gpus[1], None, 2**20)]
    seen = []

    @sampling.contextmanager
    def watch(environment):
        seen.append(environment["CUDA_VISIBLE_DEVICES"])
        yield lambda: usages

    monkeypatch.setattr(sampling, "watch_gpus", watch)
    told = Told()
    with sample_system(os.getpid(), {"CUDA_VISIBLE_DEVICES": "3,1"}, told, quick):
        wait_until(lambda: told)
    assert seen == ["3,1"]
    assert {"gpu0/utilization": 0.5, "gpu0/memory": 2**30, "gpu1/memory": 2**20}.items() <= told[0].items()
    assert "gpu1/utilization" not in told[0]
    assert told.machine["cores"] == n_cores()
    assert told.machine["gpus"] == [{"name": "H100", "memory": 80 * 2**30}] * 2


@pytest.mark.parametrize("broken", ["opening", "asking", "closing"])
def test_a_driver_that_fails_leaves_the_other_samples(monkeypatch, broken):
    @sampling.contextmanager
    def watch(environment):
        def ask():
            if broken == "asking":
                raise RuntimeError("GPU is lost")
            return []

        if broken == "opening":
            raise OSError("no driver")
        yield ask
        if broken == "closing":
            raise RuntimeError("GPU is lost")

    monkeypatch.setattr(sampling, "watch_gpus", watch)
    told = Told()
    with sample_system(os.getpid(), {}, told, quick):
        wait_until(lambda: len(told) > 2)
    wait_until(lambda: samplers() == [])
    assert set(told[-1]) == {"cpu", "memory"}


def test_a_driver_that_hangs_does_not_keep_a_run_from_its_end(monkeypatch):
    hangs, go_on = threading.Event(), threading.Event()

    def ask():
        hangs.set()
        go_on.wait(60)
        return []

    @sampling.contextmanager
    def watch(environment):
        yield ask

    monkeypatch.setattr(sampling, "watch_gpus", watch)
    monkeypatch.setattr(sampling, "_PATIENCE", 0.05)
    told = Told()
    with sample_system(os.getpid(), {}, told, quick):
        assert hangs.wait(120)
    go_on.set()
    wait_until(lambda: samplers() == [])
    assert told == []  # its run may be sealed by now


def test_a_full_disk_costs_samples_and_nothing_else():
    n_tried = []

    def tell(event, **fields):
        n_tried.append(1)
        raise StoreError("the disk is full")

    with sample_system(os.getpid(), {}, tell, quick):
        wait_until(lambda: len(n_tried) > 2)


def test_a_long_run_is_sampled_ever_more_rarely():
    age, times = 0.0, []
    while age < 7 * 24 * 3600:
        age += next_pause(age)
        times.append(age)
    by_hour = [sum(hour * 3600 <= one < (hour + 1) * 3600 for one in times) for hour in (0, 1, 2, 9)]
    assert by_hour[0] >= 700 and by_hour == sorted(by_hour, reverse=True) and len(times) < 4000


def test_gpus_of_a_machine_are_asked_by_nvml(run_on_gpus):
    script = """
    import os, time
    from scalekit.sampling import sample_system

    told = []
    tell = lambda event, **fields: told.append(fields)
    with sample_system(os.getpid(), dict(os.environ), tell, lambda age: 0.05):
        while len(told) < 3:
            time.sleep(0.01)
    report(gpus=told[0]["gpus"], names=sorted(told[-1]["values"]))
    """
    said = run_on_gpus(script, n_gpus=4, visible="2,0")
    assert len(said["gpus"]) == 2 and all(gpu["memory"] > 2**30 for gpu in said["gpus"])
    names = said["names"]
    gpus = [f"gpu{number}/{what}" for number in (0, 1) for what in ("memory", "utilization")]
    assert names == ["cpu", *gpus, "memory"]
