"""What goes wrong around a run: signals, kills, full disks, stores that can't be written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from faults import can_mount, fill, small_disk
from notebooks import STUBBORN, read_cells, write_notebook
from processes import MARK, SCALEKIT, is_alive, list_marked, start_scalekit, wait_until

import scalekit as sk
from scalekit.cli import main
from scalekit.store import Store

pytestmark = pytest.mark.usefixtures("place")

ENDLESS = """
import time
print("begins", flush=True)
for i in range(600):
    print("tick", i, flush=True); time.sleep(0.1)
"""


class Running:
    "A run on the command line that has got as far as printing `begins`"

    def __init__(self, *words):
        self.process = start_scalekit("run", "a.ipynb", *words)
        self.wait_for("begins")

    def wait_for(self, text):
        "Until the notebook or its journal says so, on disk"
        wait_until(lambda: text in self.said() or self.process.poll() is not None)
        assert self.process.poll() is None, self.end()

    def said(self):
        return "".join(map(read_so_far, Path("runs").glob("2*")))

    @property
    def bundle(self):
        return Store("runs").open_run("latest")

    @property
    def kernel(self):
        (event,) = [event for event in self.bundle.events() if event["event"] == "kernel"]
        return event["pid"]

    def end(self, timeout=120.0):
        "Exit code, and what was said"
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out + err


@pytest.fixture
def start_run(place):
    "Start a notebook of these cells on the command line"
    started = []

    def start(*cells, words=()):
        write_notebook(Path("a.ipynb"), *cells)
        started.append(run := Running(*words))
        return run

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


def cells_of(bundle):
    return read_cells(bundle.notebook)


def read_so_far(run):
    "What cells have printed, as the notebook or its journal in the folder of a run has it on disk"
    said = ""
    with suppress(FileNotFoundError):  # not yet there, or just taken into the notebook
        said += "".join(cell.text for cell in read_cells(run / "notebook.ipynb"))
        said += (run / ".notebook.ipynb.journal").read_text()
    return said


# Signals


@pytest.mark.parametrize("number, state", [(signal.SIGTERM, "preempted"), (signal.SIGINT, "cancelled")])
def test_a_signal_ends_a_run_in_the_right_state_and_keeps_its_outputs(start_run, number, state):
    run = start_run("print('one')", ENDLESS, "print('never')")
    run.wait_for("tick 0")
    run.process.send_signal(number)
    code, said = run.end()
    assert code == 1 and "Traceback" not in said
    assert f" {state} in cell 1: {state.capitalize()}: this run was told to stop" in said
    assert "executed notebook: runs/" in said
    assert run.bundle.state == state
    cells = cells_of(run.bundle)
    assert [cell.status for cell in cells] == ["completed", "failed", "not run"]
    assert cells[1].text.startswith("begins\ntick 0\n")
    assert cells[1].errors[0][0] == "KeyboardInterrupt"  # the cell heard of it, and was not killed
    assert run.bundle.sealed == (state == "cancelled")


def test_a_signal_to_the_whole_process_group_does_the_same(start_run):
    "As Ctrl-C in a terminal, `timeout` or a batch system send it"
    run = start_run("import subprocess; child = subprocess.Popen(['sleep', '60'])", ENDLESS)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end()[0] == 1
    assert (run.bundle.state, cells_of(run.bundle)[1].text[:6]) == ("cancelled", "begins")


def test_a_second_interrupt_does_not_wait_for_a_stubborn_cell(start_run):
    run = start_run("print('one')", STUBBORN, "print('never')")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("not yet")
    run.process.send_signal(signal.SIGINT)
    code, said = run.end()
    assert code == 130 and "Traceback" not in said
    assert (run.bundle.state, run.bundle.sealed) == ("cancelled", True)
    assert [cell.status for cell in cells_of(run.bundle)] == ["completed", "failed", "not run"]
    assert cells_of(run.bundle)[1].text == "begins\nnot yet\n"


def test_a_stubborn_cell_is_killed_some_seconds_after_one_interrupt(start_run):
    run = start_run(STUBBORN)
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 1
    assert (run.bundle.state, cells_of(run.bundle)[0].text) == ("preempted", "begins\nnot yet\n")


def test_a_signal_that_the_starter_ignores_stays_ignored():
    "A shell does that for what it starts in the background, and nohup for the hang-up"
    write_notebook(Path("a.ipynb"), "print('begins', flush=True)\nimport time; time.sleep(1)")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = start_scalekit("run", "a.ipynb")
    signal.signal(signal.SIGINT, before)
    wait_until(lambda: list(Path("runs").glob("*/events.jsonl")))
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.wait(120) == 0
    process.communicate()


def test_a_signal_that_comes_before_the_first_cell_is_heard(place):
    write_notebook(Path("a.ipynb"), ENDLESS)
    process = start_scalekit("run", "a.ipynb")
    wait_until(lambda: rows(state="running"), every=0.001)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert [row["state"] for row in rows()] == ["preempted"]


# Kills


def test_a_run_whose_process_was_killed_is_found_out_and_its_notebook_is_completed(start_run, capsys):
    run = start_run("print('one')", ENDLESS, "print('never')")
    run.wait_for("tick 3")
    kernel = run.kernel
    run.process.kill()
    run.end()
    wait_until(lambda: not is_alive(kernel))
    assert run.bundle.state == "running"

    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["sealed"]) == ("failed", True)
    assert row["error"] == f"lost: process {run.process.pid} on {os.uname().nodename} is gone"
    cells = cells_of(run.bundle)
    assert [cell.status for cell in cells] == ["completed", "failed", "not run"]
    assert cells[1].errors == [("RunLost", row["error"])]
    assert "tick 3\n" in cells[1].text  # as it was on disk before the kill
    assert "This run failed:** lost: process" in run.bundle.notebook.read_text()
    assert main(["show", "latest"]) == 0
    assert "changed since" not in capsys.readouterr().out
    assert not list(run.bundle.path.glob(".*"))


def test_a_run_killed_while_its_notebook_was_large_is_completed_from_its_journal(start_run):
    run = start_run("print('x' * 8_000_000)", ENDLESS)
    wait_until(lambda: list(Path("runs").glob("*/.notebook.ipynb.journal")))
    run.wait_for("tick 9")
    run.process.kill()
    run.end()
    sk.runs()
    cells = cells_of(run.bundle)
    assert len(cells[0].text) == 8_000_001
    assert cells[1].text.startswith("begins\ntick 0\ntick 1\n") and "tick 9\n" in cells[1].text
    assert (run.bundle.state, run.bundle.verify()) == ("failed", [])


@pytest.mark.parametrize("who", ["show", "runs"])
def test_whoever_looks_finds_out_that_a_run_is_lost(start_run, who):
    run = start_run(ENDLESS)
    run.process.kill()
    run.end()
    lost = run.bundle
    wait_until(lambda: not is_alive(run.kernel))
    if who == "show":
        main(["show", lost.run_id])
    else:
        assert list(sk.runs()["state"]) == ["failed"]
    assert (lost.state, lost.sealed) == ("failed", True)
    assert cells_of(lost)[0].errors[0][0] == "RunLost"


def test_a_journal_that_is_damaged_does_not_keep_a_lost_run_from_being_ended(start_run):
    run = start_run(ENDLESS)
    run.process.kill()
    run.end()
    journal = run.bundle.notebook.with_name(".notebook.ipynb.journal")
    journal.write_bytes(b'\x00\x00\xff\n{"n": 99, "cell": 0, "mark"\n[1]\n\n{"n')
    assert list(sk.runs()["state"]) == ["failed"]
    assert cells_of(run.bundle)[0].text.startswith("begins")


def test_a_killed_kernel_is_told_and_the_run_may_be_tried_again(start_run):
    run = start_run("print('one')", ENDLESS, words=["--retries", "1"])
    first, kernel = run.bundle, run.kernel
    os.kill(kernel, signal.SIGKILL)
    wait_until(lambda: run.bundle.run_id != first.run_id and run.bundle.state == "running")
    assert "KernelDied: the kernel was killed (SIGKILL)" in first.summary()["error"]
    assert [cell.status for cell in cells_of(first)] == ["completed", "failed"]
    assert cells_of(first)[1].text.startswith("begins\n")
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 1
    assert [row["state"] for row in Store("runs").list_runs()] == ["cancelled", "failed"]


def test_when_the_kernel_server_is_killed_its_kernels_end_and_the_next_run_has_a_new_one(
    start_run, short_folder, monkeypatch
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    run = start_run(ENDLESS)
    kernel = run.kernel
    server = int(Path(f"/proc/{kernel}/status").read_text().split("PPid:")[1].split()[0])
    os.kill(server, signal.SIGKILL)
    code, said = run.end()
    assert code == 1 and "KernelDied" in said
    assert cells_of(run.bundle)[0].text.startswith("begins\n")
    wait_until(lambda: not is_alive(kernel))
    write_notebook(Path("b.ipynb"), "print('ok')")
    again = sk.run("b.ipynb")
    assert [event["kind"] for event in again.bundle.events() if event["event"] == "kernel"] == ["warm"]


def test_what_cells_have_started_ends_with_a_killed_run(start_run):
    run = start_run("import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)", ENDLESS)
    child = int(read_cells(run.bundle.notebook)[0].text)
    assert is_alive(child)
    run.process.kill()
    run.end()
    wait_until(lambda: not is_alive(child))


# Disks


@pytest.fixture
def disk(place):
    if not can_mount:
        pytest.skip("only root can mount a small disk")
    with small_disk(place / "disk", "90m") as folder:
        yield folder


def test_a_disk_without_room_is_found_before_anything_starts(disk, capsys):
    write_notebook(Path("a.ipynb"), "1")
    fill(disk, but=30 << 20)
    assert main(["run", "a.ipynb", "--store", str(disk / "runs")]) == 2
    error = capsys.readouterr().err
    assert "only 30 MiB are free, and a run wants at least 64 MiB. Free some, or name another" in error
    assert error.count("\n") == 1
    assert not list(disk.glob("runs/2*"))


FILL = "open(folder + '/filler', 'wb').write(b'x' * (200 << 20))"


def test_a_disk_that_is_full_for_a_while_costs_nothing(disk):
    fills = f"try:\n    {FILL}\nexcept OSError:\n    pass"
    prints = "import time\nfor i in range(15):\n    print('tick', i, flush=True); time.sleep(0.1)"
    frees = "import os; os.remove(folder + '/filler')"
    much = ["'more events than a block can take'"] * 60
    write_notebook(
        Path("a.ipynb"), ("folder = ''", "parameters"), fills, prints, *much, frees, "print('end')"
    )
    run = sk.run("a.ipynb", folder=str(disk), store=disk / "runs")
    cells = read_cells(run.notebook)
    assert [cell.status for cell in cells] == ["completed"] * 65
    assert cells[2].text.count("tick") == 15
    assert (run.state, run.bundle.verify()) == ("succeeded", [])
    assert len(run.bundle.events()) < 130, "the disk was never full"


def test_a_disk_that_is_full_at_the_end_leaves_the_notebook_elsewhere_and_says_where(disk, tmp_path):
    makes_much = f"try:\n    {FILL}\nexcept OSError:\n    print('work of hours', 'x' * 500_000)"
    write_notebook(Path("a.ipynb"), ("folder = ''", "parameters"), "print('one')", makes_much)
    store = disk / "runs"
    run = start_scalekit("run", "a.ipynb", "-p", f"folder={disk}", "--store", store, TMPDIR=str(tmp_path))
    error = run.communicate()[1]
    assert (run.returncode, error.count("\n")) == (2, 1)
    assert "the executed notebook can't be saved" in error and "No space left on device" in error
    rescued = Path(error.split("It is in ")[1].split(" instead")[0])
    assert rescued.is_relative_to(tmp_path)
    assert read_cells(rescued)[2].text.startswith("work of hours")

    assert (
        read_cells(Store(store).open_run("latest").notebook)[1].source == "print('one')"
    )  # the file is whole
    (disk / "filler").unlink()
    assert main(["runs", "--store", str(store)]) == 0
    bundle = Store(store).open_run("latest")
    assert (bundle.state, bundle.verify()) == ("failed", [])


def test_a_cell_that_logs_on_a_full_disk_fails_with_the_way_out(disk):
    logs = "import scalekit as sk\nfor step in range(20_000): sk.log(loss=0.5, step=step)"
    write_notebook(
        Path("a.ipynb"), ("folder = ''", "parameters"), f"try:\n    {FILL}\nexcept OSError:\n    pass", logs
    )
    with pytest.raises(sk.ScaleKitError, match="the disk is full|can't be saved"):
        sk.run("a.ipynb", folder=str(disk), store=disk / "runs")


def test_a_limit_on_the_size_of_files_is_told(place):
    write_notebook(Path("a.ipynb"), "print('x' * 3_000_000)")
    words = [SCALEKIT, "run", "a.ipynb"]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit_file_size)
    assert done.returncode == 2
    assert "the executed notebook can't be saved" in done.stderr and "File too large" in done.stderr
    assert done.stderr.count("\n") == 1


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))


# Stores and folders


def test_a_store_that_cannot_be_written_is_one_sentence(place, capsys):
    write_notebook(Path("a.ipynb"), "1")
    Path("runs").write_text("a file")
    for words in (["run", "a.ipynb"], ["sweep", "a.ipynb"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error
        assert "a file is in the way where a folder should be" in error


@pytest.mark.skipif(not can_mount, reason="only root can mount a disk")
def test_a_store_that_can_only_be_read_can_be_looked_at_but_not_run_in(place, capsys):
    write_notebook(Path("a.ipynb"), "1")
    with small_disk(place / "disk", "90m") as disk:
        words = [SCALEKIT, "run", "a.ipynb", "--store", disk / "runs", "--json"]
        done = json.loads(subprocess.run(words, capture_output=True).stdout)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert main(["runs", "--store", str(disk / "runs"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["run_id"] == done["run_id"]
        assert main(["show", "latest", "--store", str(disk / "runs")]) == 0
        capsys.readouterr()
        assert main(["run", "a.ipynb", "--store", str(disk / "runs")]) == 2
        assert "the disk is mounted read-only. Name another folder" in capsys.readouterr().err


def test_a_folder_that_is_gone_when_the_run_begins_is_told(place):
    from scalekit.execute import execute_run
    from scalekit.orders import make_order, plan_run, queue_run

    (place / "work").mkdir()
    write_notebook(place / "work" / "a.ipynb", "1")
    plan, settings, store = plan_run("work/a.ipynb", {}), sk.load_settings(), Store("runs")
    with store.lease() as owner:
        bundle = queue_run(plan, store, settings.get_profile("auto"), owner)
        shutil.rmtree(place / "work")
        row = execute_run(make_order(plan, bundle, settings, threads=1))
    assert row["state"] == "failed" and "there is no such folder" in row["error"]
    assert (bundle.sealed, [cell.status for cell in cells_of(bundle)]) == (True, ["not run"])


def test_a_bundle_that_is_deleted_while_it_runs_leaves_no_process_and_one_sentence(start_run, place):
    run = start_run(ENDLESS)
    kernel = run.kernel
    shutil.rmtree(run.bundle.path)
    run.process.send_signal(signal.SIGINT)
    code, said = run.end()
    assert code == 2 and said.count("\n") == 1 and "Traceback" not in said, said
    wait_until(lambda: not is_alive(kernel))


# Sweeps

TRIAL = """
import time
print("begins", flush=True)
while seed >= 2 and not os.path.exists("go"):
    time.sleep(0.1)
"""
CELLS = [("import os\nseed: int = 0", "parameters"), TRIAL]


@pytest.fixture
def start_sweep(place):
    "Start a sweep of six trials on the command line: two end at once, the others wait for a file `go`"
    started = []

    def start(*where):
        write_notebook(Path("a.ipynb"), *CELLS)
        started.append(process := start_scalekit("sweep", "a.ipynb", "-g", "seed=0..5", *where))
        wait_until(lambda: two_and_two() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        wait_until(have_printed)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


HERE = ["--profile", "cpu", "--workers", "2"]


def rows(**filters):
    return Store("runs").list_runs(**filters)


def events_of(row):
    return Store("runs").open_run(row["run_id"]).events()


def pid_of(row, event):
    "Of the kernel of a run, or of the worker that carries it out (the event of its state), once it is told"

    def find():
        return [found["pid"] for found in events_of(row) if found["event"] == event and "pid" in found]

    wait_until(find)
    return find()[-1]


def two_and_two():
    "Two trials are done and two are running"
    return len(rows(state="succeeded")) == 2 and len(rows(state="running")) == 2


def have_printed():
    "What the two have printed is on disk, and can't be lost any more"
    return all("begins" in read_so_far(Path(row["path"])) for row in rows(state="running"))


def finish(slots):
    "Ask for the same sweep again, let it end, and see that each trial has succeeded once"
    Path("go").touch()
    done_before = {row["run_id"] for row in rows(state="succeeded")}
    found = sk.sweep("a.ipynb", seed=range(6), profile=slots, on_progress=lambda now: None)
    assert [row["state"] for row in found.rows] == ["succeeded"] * 6
    assert done_before <= {row["run_id"] for row in found.rows}
    assert sorted(row["parameters"]["seed"] for row in rows(state="succeeded")) == list(range(6))


@pytest.mark.parametrize("number, state", [(signal.SIGTERM, "preempted"), (signal.SIGINT, "cancelled")])
def test_a_signal_ends_a_sweep_well_and_the_same_call_goes_on(start_sweep, slots, number, state):
    process = start_sweep(*HERE)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert f": {state}. 2 trials are done and kept; the same call goes on with the rest" in err
    stopped = [row for row in rows() if row["started"] and row["state"] != "succeeded"]
    assert [row["state"] for row in stopped] == [state] * 2
    assert {row["state"] for row in rows()} <= {"succeeded", "cancelled", state}
    for row in stopped:
        assert read_cells(Path(row["path"]) / "notebook.ipynb")[1].text == "begins\n"
    finish(slots)


def words_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # what `git` was asked is over
        return ""


def test_an_interrupt_while_workers_start_is_heard_and_says_no_more_than_a_line(place):
    write_notebook(Path("a.ipynb"), *CELLS)
    process = start_scalekit("sweep", "a.ipynb", "-g", "seed=2..7", *HERE)  # none of them ends by itself
    starting = psutil.Process(process.pid)
    wait_until(lambda: any("spawn_main" in words_of(child) for child in starting.children()))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "cancelled. 0 trials are done and kept; the same call goes on with the rest" in err
    assert not {row["state"] for row in rows()} & {"running", "queued"}


def test_two_interrupts_end_a_sweep_at_once_and_nothing_is_left_open(start_sweep):
    process = start_sweep(*HERE)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (1, 130) and "Traceback" not in err, err
    assert not {row["state"] for row in rows()} & {"running", "queued"}
    assert all(row["sealed"] for row in rows())


def test_a_killed_sweep_leaves_no_process_and_the_same_call_at_once_does_only_what_is_missing(
    start_sweep, slots
):
    process = start_sweep(*HERE)
    kernels = [pid_of(row, "kernel") for row in rows(state="running")]
    process.kill()
    process.communicate()
    finish(slots)
    wait_until(lambda: not any(map(is_alive, kernels)) and not list_marked(os.environ[MARK]))
    main(["runs"])
    lost = rows(state="failed")
    assert len(lost) >= 2 and len(lost) + 6 == len(rows())
    assert all(row["error"].startswith("lost: ") and row["sealed"] for row in lost)
    texts = [read_cells(Path(row["path"]) / "notebook.ipynb")[1].text for row in lost]
    assert texts.count("begins\n") == 2


@pytest.fixture
def sweep_in_thread(place):
    "A sweep of six trials in this process, on two workers of its own"
    from scalekit.cluster import open_cluster

    write_notebook(Path("a.ipynb"), *CELLS)
    found = []

    def work():
        try:
            found.append(
                sk.sweep("a.ipynb", seed=range(6), profile=cluster.address, on_progress=lambda now: None)
            )
        except sk.ScaleKitError as error:
            found.append(error)

    with open_cluster("cpu", n_workers=2) as cluster:
        thread = threading.Thread(target=work)
        thread.start()
        yield thread, found
        Path("go").touch()
        thread.join()


def test_a_trial_whose_worker_is_killed_is_tried_again_and_the_others_go_on(sweep_in_thread):
    thread, found = sweep_in_thread
    wait_until(two_and_two)
    wait_until(have_printed)
    victim, other = rows(state="running")
    os.kill(worker := pid_of(victim, "state"), signal.SIGKILL)
    wait_until(lambda: rows(state="failed"))
    wait_until(lambda: not is_alive(pid_of(victim, "kernel")))
    Path("go").touch()
    thread.join(200)
    assert [row["state"] for row in found[0].rows] == ["succeeded"] * 6
    assert other["run_id"] in {row["run_id"] for row in found[0].rows}
    (lost,) = rows(state="failed")
    assert lost["run_id"] == victim["run_id"]
    assert lost["error"] == f"lost: process {worker} on {os.uname().nodename} is gone"
    cell = read_cells(Path(lost["path"]) / "notebook.ipynb")[1]
    assert (cell.text, cell.status, cell.errors[0][0]) == ("begins\n", "failed", "RunLost")
    assert len(rows()) == 7


def test_a_notebook_that_kills_its_worker_is_given_up_and_the_others_go_on(place):
    from scalekit.cluster import open_cluster

    looks = "import json, os, time\nimport scalekit as sk\n"
    looks += "lines = open(sk.current_run().path / 'events.jsonl').readlines()"
    finds = "pid = next(e['pid'] for e in map(json.loads, lines) if e.get('state') == 'running')"
    kills = "if seed == 1:\n    os.kill(pid, 9)\ntime.sleep(0.5)"
    write_notebook(Path("a.ipynb"), ("seed: int = 0", "parameters"), looks, f"{finds}\n{kills}")
    with open_cluster("cpu", n_workers=2) as cluster:
        found = sk.sweep("a.ipynb", seed=range(4), profile=cluster.address, on_progress=lambda now: None)
    states = {row["parameters"]["seed"]: row["state"] for row in found.rows}
    assert states == {0: "succeeded", 1: "failed", 2: "succeeded", 3: "succeeded"}
    assert len(rows(state="failed")) == 3
    assert all(row["error"].startswith("lost: ") for row in rows(state="failed"))


def test_a_killed_kernel_of_a_trial_is_its_failure_and_the_others_go_on(sweep_in_thread):
    thread, found = sweep_in_thread
    wait_until(two_and_two)
    os.kill(pid_of(rows(state="running")[0], "kernel"), signal.SIGKILL)
    wait_until(lambda: rows(state="failed"))
    Path("go").touch()
    thread.join(200)
    assert [row["state"] for row in found[0].rows] == ["succeeded"] * 5 + ["failed"]
    assert "KernelDied: the kernel was killed" in found[0].rows[-1]["error"]


@pytest.fixture
def far_cluster(place):
    "A scheduler and two workers as somebody else would start them; the address, and the scheduler's process"
    dask, file = Path(SCALEKIT).with_name("dask"), place / "scheduler.json"
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    scheduler = subprocess.Popen([dask, "scheduler", "--port", "0", *common], **quiet)
    alone = ["--nworkers", "2", "--nthreads", "1", "--death-timeout", "200"]
    workers = subprocess.Popen([dask, "worker", *alone, *common], **quiet)
    try:
        wait_until(lambda: file.exists() and file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], scheduler
    finally:
        for process in (scheduler, workers):
            process.terminate()
        for process in (scheduler, workers):
            process.wait(120)


def test_when_the_scheduler_dies_the_sweep_says_how_to_go_on(far_cluster, start_sweep, slots):
    address, scheduler = far_cluster
    process = start_sweep("--profile", address)
    kernels = [pid_of(row, "kernel") for row in rows(state="running")]
    scheduler.kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert (
        f"the Dask scheduler at {address} is gone. 2 trials are done and kept; the same call goes on" in err
    )
    wait_until(lambda: not any(map(is_alive, kernels)))
    main(["runs"])
    assert not {row["state"] for row in rows()} & {"running", "queued"}
    finish(slots)


def test_a_disk_that_fills_up_ends_a_sweep_with_the_way_out(disk, slots):
    write_notebook(
        Path("a.ipynb"), ("folder = ''\nseed: int = 0", "parameters"), f"if seed == 1:\n    {FILL}"
    )
    with pytest.raises(sk.ScaleKitError, match="Free some|Free some space") as caught:
        store = disk / "runs"
        sk.sweep("a.ipynb", seed=range(8), parameters={"folder": str(disk)}, profile=slots, store=store,
                 on_progress=lambda now: None)  # fmt: skip
    assert "the same call goes on with the rest" in str(caught.value)
    (disk / "filler").unlink()
    sk.runs(disk / "runs")
    states = [row["state"] for row in Store(disk / "runs").list_runs()]
    assert not set(states) & {"running", "queued"}
    assert "succeeded" in states
