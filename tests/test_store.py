"""Bundles and the index: what they keep when processes die, disks fill and files get damaged."""

import contextlib
import json
import os
import pickle
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from multiprocessing import Pipe, get_context
from pathlib import Path

import pytest
from faults import can_mount, count_told, fill, run_together, small_disk, started
from processes import wait_until

from scalekit import bundle as bundle_room
from scalekit import index as index_room
from scalekit import sqlitefile as sqlite_room
from scalekit.bundle import Bundle, SealedBundle, create_bundle
from scalekit.catalog import tell_progress
from scalekit.core import new_run_id
from scalekit.events import StoreError, append_event, follow_events, read_events
from scalekit.lease import Lease, this_process
from scalekit.store import Store, UnknownRun
from scalekit.summary import NEXT_STATES, WrongState, check_step, fingerprint


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def finish(bundle, **metrics):
    "Take a run from queued to sealed"
    bundle.set_state("running")
    bundle.append("record", values=metrics)
    bundle.set_state("succeeded")
    bundle.seal()


# Events


def write_lines(path, writer, n):
    for number in range(n):
        size = 40_000 if number % 10 == 0 else 20  # pages of it and less than one
        append_event(path, {"event": "log", "writer": writer, "number": number, "text": "x" * size})


def test_eight_processes_append_and_every_line_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    path.touch()
    assert run_together(write_lines, [(path, writer, 200) for writer in range(8)]) == [0] * 8
    lines = [line for line in path.read_text().splitlines() if line]
    events = [json.loads(line) for line in lines]
    assert len(events) == 1600
    for writer in range(8):  # and each writer's own lines stand in the order it wrote them
        assert [e["number"] for e in events if e["writer"] == writer] == list(range(200))


def append_and_tell(path, told):
    for number in range(10**9):
        append_event(path, {"event": "log", "number": number, "text": "x" * 20_000})
        told.send(number)


@pytest.mark.parametrize("attempt", range(5))
def test_a_writer_killed_while_it_appends_loses_nothing_it_was_promised(tmp_path, attempt):
    path = tmp_path / "events.jsonl"
    path.touch()
    hear, tell = Pipe(duplex=False)
    with started(append_and_tell, path, tell) as child:
        tell.close()
        hear.recv()
        time.sleep(random.random() / 10)
        child.kill()
        promised = 1 + count_told(hear)
    append_event(path, {"event": "log", "number": "next"})
    numbers = [event["number"] for event in read_events(path)]
    assert promised > 0
    assert numbers[-1] == "next"
    assert numbers[:promised] == list(range(promised))


HALVES = [b'{"time": "2026', b'{"a": [1', b'{"a": "b', b"\0\0\0", b"\xff", b"{", b"12", b'"']


@pytest.mark.parametrize("torn", HALVES)
def test_half_a_line_is_passed_over_and_hides_no_other(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "first"}\n' + torn)
    assert [event["event"] for event in read_events(path)] == ["first"]
    append_event(path, {"event": "second", "text": '"}]'})
    assert [event["event"] for event in read_events(path)] == ["first", "second"]


def test_a_follower_sees_each_event_once_and_never_half_of_one(tmp_path):
    path = tmp_path / "events.jsonl"
    path.touch()
    seen, offset = [], 0
    with started(write_lines, path, 0, 300) as child:
        while child.is_alive() or offset < path.stat().st_size:
            events, offset = follow_events(path, offset)
            seen += events
    assert [event["number"] for event in seen] == list(range(300))


def test_a_text_that_looks_like_a_change_of_state_is_none(store):
    bundle = store.create_run({})
    bundle.append("record", values={"event": "state", "state": "succeeded", "text": '"event": "state"'})
    assert bundle.state == "queued"


@pytest.mark.skipif(not can_mount, reason="only root can mount a small disk")
def test_a_full_disk_is_one_sentence_and_what_was_written_stays(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        store = Store(disk / "runs")
        bundle = store.create_run({})
        filler = fill(disk, but=20_000)
        with pytest.raises(StoreError, match="can't write down what happens: the disk is full. Free some"):
            for number in range(10_000):
                bundle.append("log", number=number, text="x" * 3000)
        written = len(bundle.events())
        with pytest.raises(StoreError, match="can't be created: the disk is full") as caught:
            store.create_run({"text": "x" * 9000})
        assert isinstance(caught.value, OSError)
        assert [name for name in os.listdir(store.folder) if name != ".index"] == [bundle.run_id]

        filler.unlink()
        bundle.append("log", number="after")
        assert [event.get("number") for event in bundle.events()] == [None, *range(written - 1), "after"]
        store.close()


LIMITED = """
import resource, sys
from scalekit.bundle import Bundle
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
bundle = Bundle(sys.argv[1])
for number in range(1000):
    bundle.append("log", number=number, text="x" * 3000)
    print(number)
"""


def test_a_limit_on_the_size_of_files_is_one_sentence(store):
    bundle = store.create_run({})
    script = subprocess.run([sys.executable, "-c", LIMITED, bundle.path], capture_output=True, text=True)
    assert "StoreError" in script.stderr
    n_promised = len(script.stdout.split())
    bundle.append("log", number="after")
    assert [event.get("number") for event in bundle.events()] == [None, *range(n_promised), "after"]
    assert n_promised > 10


# Making and sealing


def create_for_ever(folder):
    store = Store(folder)
    while True:
        store.create_run({"notebook": "a.ipynb", "parameters": {"text": "x" * 5000}})


@pytest.mark.parametrize("attempt", range(4))
def test_a_creator_that_is_killed_leaves_no_half_run(store, attempt):
    with started(create_for_ever, store.folder):
        wait_until(lambda: store.folder.is_dir() and len(os.listdir(store.folder)) > 5 + attempt)
        time.sleep(random.random() / 50)
    rows = store.list_runs()
    assert len(rows) >= 3
    assert {row["state"] for row in rows} == {"queued"}
    assert all(Bundle(row["path"]).asked["parameters"] == {"text": "x" * 5000} for row in rows)


def test_what_a_killed_creator_left_is_swept_up_later_and_a_creator_at_work_is_not_disturbed(store):
    store.create_run({})
    fresh, old = (store.folder / f".{new_run_id()}.77.{hexes}" for hexes in ("0123abcd", "89ab0123"))
    for folder in (fresh, old):
        (folder / "cells").mkdir(parents=True)
    os.utime(old, (0, time.time() - 7200))
    assert store.reap() == []
    assert (fresh.exists(), old.exists()) == (True, False)


def test_a_failed_creation_leaves_nothing(store, monkeypatch):
    store.create_run({})

    def refuse(source, target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("scalekit.bundle.os.rename", refuse)
    with pytest.raises(StoreError, match="can't be created: Input/output error"):
        store.create_run({})
    assert len([name for name in os.listdir(store.folder) if name != ".index"]) == 1


def seal_for_ever(bundle):
    while True:
        bundle.seal()
        (bundle.path / "SHA256SUMS").unlink()


@pytest.mark.parametrize("attempt", range(4))
def test_a_run_killed_while_it_seals_is_sealed_or_not_but_never_wrongly(store, attempt):
    bundle = store.create_run({})
    (bundle.artifacts / "model.bin").write_bytes(os.urandom(300_000))
    bundle.set_state("running")
    bundle.set_state("succeeded")
    with started(seal_for_ever, bundle):
        time.sleep(0.05 + random.random() / 50)
    if bundle.sealed:
        assert bundle.verify() == []
    bundle.seal()
    assert bundle.verify() == []


def test_the_system_can_check_a_seal_whatever_the_names(store):
    bundle = store.create_run({})
    names = ["space in it", "new\nline", "back\\slash", "return\r", "ümläut", os.fsdecode(b"no-utf8-\xff")]
    for name in names:
        (bundle.artifacts / name).write_text(name, errors="surrogateescape")
    (bundle.artifacts / "to itself").symlink_to(bundle.path)
    os.mkfifo(bundle.artifacts / "pipe")
    finish(bundle)
    assert bundle.verify() == []
    check = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    checked = subprocess.run(check, cwd=bundle.path, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(b": OK") == len(names) + 3  # run.json, events.jsonl, environment.txt


def test_verify_names_what_is_missing_changed_or_new(store):
    bundle = store.create_run({})
    (bundle.artifacts / "a.txt").write_text("a")
    assert bundle.verify() == ["SHA256SUMS: is missing, so the run was never finished"]
    finish(bundle)
    (bundle.artifacts / "a.txt").unlink()
    (bundle.artifacts / "b.txt").write_text("b")
    (bundle.path / "run.json").write_text("{}")
    (bundle.path / ".ipynb_checkpoints").mkdir()  # JupyterLab's, when somebody looks at the notebook
    (bundle.path / ".ipynb_checkpoints" / "notebook.ipynb").write_text("{}")
    findings = ["artifacts/a.txt: is missing", "artifacts/b.txt: came later", "run.json: differs"]
    assert bundle.verify() == findings
    (bundle.path / "SHA256SUMS").write_bytes(b"what is this\n")
    assert "SHA256SUMS: line 1 can't be read" in bundle.verify()


def test_a_sealed_run_takes_nothing_more_and_sealing_twice_changes_nothing(store):
    bundle = store.create_run({})
    with pytest.raises(WrongState, match="is queued; only an ended run can be sealed"):
        bundle.seal()
    finish(bundle)
    before = (bundle.path / "SHA256SUMS").stat()
    bundle.seal()
    assert (bundle.path / "SHA256SUMS").stat() == before
    with pytest.raises(SealedBundle, match="is succeeded and sealed; nothing can be added to it"):
        bundle.append("log", values={})
    assert bundle.verify() == []


def test_an_event_that_comes_while_the_run_is_sealed_is_sealed_too(store, monkeypatch):
    bundle = store.create_run({})
    bundle.set_state("running")
    bundle.set_state("failed")
    late = iter([1, 2])

    def seal_slowly(path):
        write_seal(path)
        if next(late, None):
            (bundle.path / "SHA256SUMS").unlink()  # so that the straggler still finds the run open
            bundle.append("log", values={"late": 1})
            write_seal_without(path)

    from scalekit.seal import write_seal

    def write_seal_without(path):  # the checksums from before the straggler
        (bundle.path / "SHA256SUMS").write_text("")

    monkeypatch.setattr("scalekit.bundle.write_seal", seal_slowly)
    bundle.seal()
    assert len([event for event in bundle.events() if event["event"] == "log"]) == 2
    assert bundle.verify() == []


# What is asked


def test_no_path_of_this_machine_is_in_a_bundle(store, tmp_path):
    inside = store.create_run({"notebook": tmp_path / "nbs" / "train.ipynb"})
    outside = store.create_run({"notebook": "/somewhere/else/train.ipynb"})
    assert (inside.asked["notebook"], outside.asked["notebook"]) == ("nbs/train.ipynb", "train.ipynb")
    for bundle in (inside, outside):
        finish(bundle)
        for path in filter(Path.is_file, bundle.path.rglob("*")):
            assert str(tmp_path) not in path.read_text(), path


def test_the_index_holds_no_path_so_a_store_can_be_moved(store, tmp_path):
    finish(store.create_run({}))
    store.list_runs()
    moved = store.folder.rename(tmp_path / "elsewhere")
    (row,) = Store(moved).list_runs()
    assert row["path"] == str(moved / row["run_id"])
    for file in (moved / ".index").iterdir():
        assert str(store.folder).encode() not in file.read_bytes()


def test_everything_installed_is_named_with_its_version(store):
    from importlib.metadata import version

    lines = store.create_run({}).path.joinpath("environment.txt").read_text().splitlines()
    assert f"numpy=={version('numpy')}" in lines
    assert lines[0].startswith(f"# Python {sys.version.split()[0]}")


def test_cost_is_known_only_if_the_price_is(store, monkeypatch):
    times = iter(f"2026-05-01T12:{minute:02d}:00.000000Z" for minute in range(60))
    monkeypatch.setattr("scalekit.bundle.utc_now", lambda: next(times))
    for asked, cost in (({"price_per_hour": 3.0}, 0.1), ({"price_per_hour": 0}, 0.0), ({}, None)):
        bundle = store.create_run(asked)
        assert bundle.summary()["cost"] is None
        finish(bundle)
        assert (bundle.summary()["seconds"], bundle.summary()["cost"]) == (120.0, cost)


# States


def end(bundle, state):
    try:
        bundle.set_state(state)
    except WrongState:
        os._exit(3)


def check_slowly():
    "Between looking and writing, the others get their chance"

    def check(*step):
        check_step(*step)
        time.sleep(0.05)

    bundle_room.check_step = check


def test_of_many_who_end_a_run_at_once_exactly_one_succeeds(store):
    bundle = store.create_run({})
    bundle.set_state("running")
    states = ("failed", "succeeded", "pruned", "cancelled")
    codes = run_together(end, [(bundle, state) for state in states], check_slowly)
    assert sorted(codes) == [0, 3, 3, 3]
    assert len(bundle.events()) == 3


@pytest.mark.parametrize("ended", [state for state, following in NEXT_STATES.items() if not following])
def test_what_has_ended_stays_ended(store, ended):
    bundle = store.create_run({})
    bundle.set_state("running")
    bundle.set_state(ended)
    for state in NEXT_STATES:
        with pytest.raises(WrongState, match=f"is {ended} and can't become {state}. It has ended"):
            bundle.set_state(state)


# Leases


def work_and_wait(bundle, owner=None):
    with bundle.lease():
        bundle.set_state("running")
        time.sleep(60)


def wait_for_running(bundle):
    wait_until(lambda: bundle.state == "running")


def test_a_run_whose_process_was_killed_is_found_and_ended(store):
    bundle = store.create_run({})
    with started(work_and_wait, bundle) as worker:
        wait_for_running(bundle)
        assert store.reap() == []
        worker.kill()
        worker.join()
    assert store.reap() == [bundle.run_id]
    (row,) = store.list_runs()
    assert row["state"] == "failed"
    assert row["error"] == f"lost: process {worker.pid} on {socket.gethostname()} is gone"
    assert (bundle.sealed, bundle.verify(), store.reap()) == (True, [], [])
    assert not (bundle.path / "lease").exists()


def test_a_stopped_process_is_alive_however_old_its_heartbeat(store):
    bundle = store.create_run({})
    with started(work_and_wait, bundle) as worker:
        wait_for_running(bundle)
        os.kill(worker.pid, signal.SIGSTOP)
        os.utime(bundle.path / "lease", (0, 0))
        assert (store.reap(), bundle.state) == ([], "running")


def test_a_process_that_is_dead_but_not_waited_for_is_gone(store):
    bundle = store.create_run({})
    code = "import sys, test_store as t; t.work_and_wait(t.Bundle(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", code, bundle.path], cwd=Path(__file__).parent) as worker:
        wait_for_running(bundle)
        worker.kill()
        wait_until(lambda: Path(f"/proc/{worker.pid}/stat").read_text().split()[2] == "Z")
        assert store.reap() == [bundle.run_id]


def lend(bundle, **changes):
    "Write the lease of a process somewhere"
    holder = {**vars(this_process()), "owner": None, **changes}
    (bundle.path / "lease").write_text(json.dumps(holder))


def test_another_process_with_the_same_number_does_not_count(store):
    bundle = store.create_run({})
    bundle.set_state("running")
    lend(bundle)
    assert store.reap() == []
    lend(bundle, born="1")
    assert store.reap() == [bundle.run_id]


def test_on_another_machine_the_heartbeat_decides(store):
    bundle = store.create_run({})
    bundle.set_state("running")
    lend(bundle, host="node7", space="another boot")
    os.utime(bundle.path / "lease", (0, time.time() - 30))
    assert store.reap() == []
    os.utime(bundle.path / "lease", (0, time.time() - 70))
    assert store.reap() == [bundle.run_id]
    assert bundle.summary()["error"] == f"lost: process {os.getpid()} on node7 is gone"
    with pytest.raises(SealedBundle):  # node7 only slept: it learns that it is too late
        bundle.append("log", values={})


def test_a_damaged_lease_is_judged_by_its_heartbeat(store):
    bundle = store.create_run({})
    (bundle.path / "lease").write_bytes(b"\0" * 80)
    assert store.reap() == []
    os.utime(bundle.path / "lease", (0, 0))
    assert store.reap() == [bundle.run_id]


def test_the_heartbeat_beats_and_stops(store, monkeypatch):
    monkeypatch.setattr("scalekit.lease.HEARTBEAT", 0.01)
    bundle, others = store.create_run({}), set(threading.enumerate())
    lease = bundle.lease()
    os.utime(bundle.path / "lease", (0, 0))
    wait_until(lambda: (bundle.path / "lease").stat().st_mtime > 0)
    lease.release()
    os.utime(bundle.path / "lease", (0, 0))
    time.sleep(0.05)
    assert (bundle.path / "lease").stat().st_mtime == 0
    assert not _beating(others)


def _beating(others: set[threading.Thread]) -> list[threading.Thread]:
    "Heartbeats that began since then"
    return [one for one in set(threading.enumerate()) - others if one.name == "scalekit-lease"]


def test_the_heartbeat_ends_quietly_when_the_run_is_deleted(store, monkeypatch):
    monkeypatch.setattr("scalekit.lease.HEARTBEAT", 0.01)
    bundle, others = store.create_run({}), set(threading.enumerate())
    with bundle.lease():
        assert _beating(others)
        bundle.path.rename(store.folder / "away")
        wait_until(lambda: not _beating(others))


def test_a_lease_ends_with_its_run_and_not_before(store):
    bundle = store.create_run({})
    with bundle.lease():
        bundle.set_state("running")
    assert (bundle.path / "lease").exists()  # unfinished: whoever looks must see whose it was
    with bundle.lease():
        bundle.set_state("succeeded")
    assert not (bundle.path / "lease").exists()


def queue_and_wait(store, n):
    with store.lease() as owner:
        for _ in range(n):
            store.create_run({}, owner)
        time.sleep(60)


def test_queued_runs_live_as_long_as_who_queued_them(store):
    alone = store.create_run({})  # nobody ever answered for it, so nobody can be gone
    with started(queue_and_wait, store, 3) as owner:
        wait_until(lambda: len(store.list_runs()) == 4)
        assert store.reap() == []
        owner.kill()
        owner.join()
    assert len(store.reap()) == 3
    assert [row["run_id"] for row in store.list_runs(state="queued")] == [alone.run_id]
    lost = f"lost: process {owner.pid} on {socket.gethostname()} is gone"
    assert [row["error"] for row in store.list_runs(state="failed")] == [lost] * 3
    assert os.listdir(store.folder / ".leases") == []


def test_runs_left_in_the_queue_by_one_who_ended_are_lost_too(store):
    with store.lease() as owner:
        bundle = store.create_run({}, owner)
        assert store.reap() == []
    assert store.reap() == [bundle.run_id]
    assert bundle.summary()["error"] == "lost: the process that queued it has ended"


def test_while_the_owner_lives_it_decides_what_becomes_of_a_dead_workers_run(store):
    with store.lease() as owner:
        bundle = store.create_run({}, owner)
        with started(work_and_wait, bundle):
            wait_for_running(bundle)
        assert (store.reap(), bundle.state) == ([], "running")
        bundle.lease(owner=owner)
        bundle.set_state("queued")
        with started(work_and_wait, bundle):
            wait_for_running(bundle)
    assert store.reap() == [bundle.run_id]


def test_a_preempted_run_waits_for_whoever_goes_on_with_it(store):
    bundle = store.create_run({})
    lend(bundle, born="1")
    bundle.set_state("running")
    bundle.set_state("preempted")
    assert (store.reap(), bundle.state) == ([], "preempted")


def test_a_run_killed_between_its_end_and_its_seal_is_sealed_and_keeps_its_state(store):
    bundle = store.create_run({})
    lend(bundle, born="1")
    bundle.set_state("running")
    bundle.set_state("succeeded")
    assert store.reap() == []
    assert (bundle.state, bundle.sealed, bundle.verify()) == ("succeeded", True, [])


def test_an_ended_run_that_nobody_holds_is_sealed(store):
    bundle = store.create_run({})
    bundle.set_state("cancelled")
    assert store.reap() == []
    assert (bundle.state, bundle.sealed, store.list_runs()[0]["sealed"]) == ("cancelled", True, True)


def test_the_last_word_of_a_process_counts_also_if_it_dies_while_it_is_looked_at(store, monkeypatch):
    bundle = store.create_run({})
    bundle.set_state("running")

    def look_late(lease, now):
        bundle.set_state("preempted")
        return "process 1 on here is gone"

    monkeypatch.setattr("scalekit.store.why_lost", look_late)
    assert (store.reap(), bundle.state) == ([], "preempted")


def reap(folder):
    Store(folder).reap()


def test_many_who_look_for_lost_runs_at_once_end_each_once(store):
    bundles = [store.create_run({}) for _ in range(5)]
    for bundle in bundles:
        lend(bundle, born="1")
    assert run_together(reap, [(store.folder,)] * 6, check_slowly) == [0] * 6
    for bundle in bundles:
        assert [event["state"] for event in bundle.events()] == ["queued", "failed"]
        assert bundle.verify() == []


# The index


def make_runs(folder, n, seed):
    warnings.simplefilter("error")
    store = Store(folder)
    for number in range(n):
        bundle = store.create_run({"sweep": f"s{seed}", "parameters": {"number": number}})
        bundle.set_state("running")
        bundle.set_state("succeeded")
        store.index(bundle)
        assert bundle.run_id in [row["run_id"] for row in store.list_runs(sweep=f"s{seed}")]


def test_eight_processes_write_into_a_new_store_and_no_run_is_missed(store):
    assert run_together(make_runs, [(store.folder, 25, seed) for seed in range(8)]) == [0] * 8
    rows = store.list_runs(state="succeeded")
    assert len(rows) == 200
    assert [row["run_id"] for row in rows] == sorted((row["run_id"] for row in rows), reverse=True)


def test_the_index_may_be_deleted_while_eight_processes_use_it(store):
    stop = threading.Event()

    def delete():
        while not stop.wait(0.1):
            for path in (store.folder / ".index").glob("runs.sqlite*"):
                path.unlink(missing_ok=True)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        assert run_together(make_runs, [(store.folder, 10, seed) for seed in range(8)]) == [0] * 8
    finally:
        stop.set()
        thread.join()
    assert len(store.list_runs(state="succeeded")) == 80


def spoil(path, how):
    if how == "garbage":
        path.write_bytes(os.urandom(5000))
    elif how == "cut":
        with open(path, "rb+") as file:
            file.truncate(path.stat().st_size // 2)
    elif how == "overwritten":
        with open(path, "rb+") as file:
            file.seek(4096)
            file.write(os.urandom(8000))
    elif how == "a folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["garbage", "cut", "overwritten"])
@pytest.mark.parametrize("in_use", [True, False], ids=["in use", "at rest"])
def test_a_damaged_index_is_made_anew_with_a_warning(tmp_path, how, in_use):
    store = Store(tmp_path / "runs")
    for number in range(60):
        finish(store.create_run({"parameters": {"text": "x" * 200}}), number=number)
    path = store.folder / ".index" / "runs.sqlite"
    Store(store.folder).list_runs()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    reader = store if in_use else Store(store.folder)
    spoil(path, how)
    with pytest.warns(UserWarning, match="was damaged; it is made anew"):
        rows = reader.list_runs()
    assert [row["metrics"]["number"] for row in rows] == list(range(59, -1, -1))
    assert len(Store(store.folder).list_runs(limit=7)) == 7


def test_an_index_of_another_version_is_made_anew(store, monkeypatch):
    finish(store.create_run({}))
    monkeypatch.setattr(index_room, "_SCHEMA", 99)
    monkeypatch.setattr(index_room, "_TABLE", [*index_room._TABLE[:-1], "PRAGMA user_version = 99"])
    newer = Store(store.folder)
    assert [row["state"] for row in newer.list_runs()] == ["succeeded"]
    with newer._catalog._index.session() as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
    assert [row["state"] for row in store.list_runs()] == ["succeeded"]  # it had the old file open


def test_where_the_index_cannot_be_written_the_runs_are_listed_all_the_same(store):
    bundle = store.create_run({})
    finish(bundle)
    closed = store.folder / ".index"
    subprocess.run(["rm", "-r", closed], check=True)
    closed.write_text("a file in the way, as a read-only disk would be")
    with pytest.warns(UserWarning, match="can't be used"):
        other = Store(store.folder)
        assert [row["state"] for row in other.list_runs()] == ["succeeded"]
    finish(other.create_run({}))
    assert len(other.list_runs()) == 2


@pytest.mark.skipif(not can_mount, reason="only root can mount a small disk")
def test_on_a_full_disk_the_runs_are_listed_all_the_same(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        store = Store(disk / "runs")
        finish(store.create_run({}))
        unseen = create_bundle(store.folder / new_run_id(), {"parameters": {"text": "x" * 9000}})
        filler = fill(disk, but=0)
        with pytest.warns(UserWarning, match="can't be used .*full.*; the runs' folders are read instead"):
            assert [row["run_id"] for row in store.list_runs()][0] == unseen.run_id
        assert len(store.list_runs()) == 2
        filler.unlink()
        finish(unseen)
        assert len(store.list_runs(state="succeeded")) == len(Store(store.folder).list_runs()) == 2
        store.close()


def share_disk():
    sqlite_room._disk_type = lambda folder: "nfs4"


def test_on_a_shared_disk_the_index_does_without_a_write_ahead_log(store, monkeypatch):
    monkeypatch.setattr(sqlite_room, "_disk_type", lambda folder: "nfs4")
    store.create_run({})
    with store._catalog._index.session() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert run_together(make_runs, [(store.folder, 5, seed) for seed in range(4)], share_disk) == [0] * 4
    assert len(store.list_runs()) == 21


def test_a_run_is_listed_though_the_index_was_never_told(store, tmp_path):
    store.create_run({})
    created = create_bundle(store.folder / new_run_id(), {"notebook": "a.ipynb"})
    assert store.list_runs()[0]["run_id"] == created.run_id
    created.set_state("running")
    created.append("log", step=1, values={"loss": 0.5})
    assert (store.list_runs()[0]["state"], store.list_runs()[0]["metrics"]) == ("running", {"loss": 0.5})
    created.path.rename(tmp_path / "away")
    assert created.run_id not in [row["run_id"] for row in store.list_runs()]


def test_an_old_summary_never_replaces_a_newer_one(store):
    bundle = store.create_run({})
    stale = (bundle.summary(), bundle.size)
    finish(bundle)
    store.index(bundle)
    with store._catalog._index.session() as db:
        index_room.put_rows(db, [stale])
    assert store.list_runs()[0]["state"] == "succeeded"


def test_rebuilding_mends_what_was_changed_by_hand(store):
    bundle = store.create_run({"notebook": "a.ipynb"})
    finish(bundle)
    store.index(bundle)
    wrong = bundle.summary() | {"state": "failed"}
    with store._catalog._index.session() as db:
        index_room.put_rows(db, [(wrong, bundle.size + 1000), ({"run_id": "ghost"}, 1)])
    assert store.list_runs()[0]["state"] == "failed"
    assert (store.rebuild_index(), store.list_runs()[0]["state"]) == (1, "succeeded")


def test_a_lost_run_with_a_damaged_file_stops_no_other_from_being_ended(store):
    with store.lease() as owner:
        bad, good = (store.create_run({"notebook": "train.ipynb"}, owner) for _ in range(2))
    store.list_runs()
    (bad.path / "run.json").write_text("{")
    with pytest.warns(UserWarning, match=f"run {bad.run_id} is damaged"):
        assert store.reap(lambda bundle: bundle.asked["notebook"]) == [good.run_id]


def test_a_damaged_bundle_is_shown_as_such_and_stops_no_list(store):
    good, bad, worse = (store.create_run({}) for _ in range(3))
    (bad.path / "run.json").write_text('{"half')
    (worse.path / "events.jsonl").unlink()
    store.rebuild_index()
    errors = {row["run_id"]: row["error"] for row in store.list_runs()}
    assert errors[good.run_id] is None
    assert errors[bad.run_id].startswith("damaged: ")
    assert "its folder is gone" in errors[worse.run_id]


def test_what_is_no_run_is_not_listed(store):
    bundle = store.create_run({})
    (store.folder / "notes").mkdir()
    (store.folder / "20260501-notes").write_text("mine")
    assert [row["run_id"] for row in store.list_runs()] == [bundle.run_id]
    assert store.open_run("latest").run_id == bundle.run_id


def list_in_child(store, parents):
    assert len(store.list_runs()) == 1
    store.create_run({})
    assert store._catalog._index._db not in (None, parents)


def fork_in_session(folder):
    store = Store(folder)
    with store._catalog._index.session() as parents:
        child = get_context("fork").Process(target=list_in_child, args=(store, parents))
        child.start()
        child.join()
    sys.exit(child.exitcode)


def test_a_fork_opens_the_index_for_itself_even_while_a_thread_of_its_parent_uses_it(store):
    store.create_run({})
    assert run_together(fork_in_session, [(store.folder,)]) == [0]
    assert len(store.list_runs()) == 2


def test_after_the_index_was_deleted_all_who_used_it_share_a_new_one(store):
    finish(store.create_run({}))
    other = Store(store.folder)
    assert len(other.list_runs()) == len(store.list_runs()) == 1
    for path in (store.folder / ".index").iterdir():
        path.unlink()
    finish(store.create_run({}))
    assert len(other.list_runs()) == len(store.list_runs()) == 2
    with contextlib.closing(sqlite3.connect(store.folder / ".index" / "runs.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (2,)


def test_threads_share_a_store(store):
    errors = []

    def work():
        try:
            for _ in range(10):
                finish(store.create_run({}))
                store.list_runs()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, len(store.list_runs(state="succeeded"))) == ([], 60)


def test_a_bundle_is_found_again_whatever_the_working_folder_becomes(store, monkeypatch):
    run_id = store.create_run({}).run_id
    monkeypatch.chdir(store.folder)
    bundle, same = Bundle(run_id), Store(".")
    monkeypatch.chdir("/")
    assert (bundle.state, same.open_run("latest").run_id) == ("queued", run_id)


def test_a_store_travels_to_a_worker(store):
    bundle = store.create_run({})
    copy, run = pickle.loads(pickle.dumps((store, bundle)))
    assert (copy.folder, copy.project, run.state) == (store.folder, store.project, "queued")


def test_reading_a_long_list_tells_how_far_it_is(capsys):
    assert list(tell_progress(["a"] * 1200, "reading runs", patience=0)) == ["a"] * 1200
    assert "reading runs: 1,200 of 1,200" in capsys.readouterr().err
    assert len(list(tell_progress(["a"] * 1200, "reading runs"))) == 1200
    assert capsys.readouterr().err == ""


# Listing


def test_runs_are_filtered_and_the_newest_comes_first(store, tmp_path):
    for number in range(6):
        notebook = tmp_path / ("nbs/train.ipynb" if number % 2 else "eval.ipynb")
        sweep = f"s{number // 3}"
        bundle = store.create_run({"notebook": notebook, "sweep": sweep, "parameters": {"n": number}})
        if number > 3:
            finish(bundle)

    def numbers(**filters):
        return [row["parameters"]["n"] for row in store.list_runs(**filters)]

    assert numbers() == [5, 4, 3, 2, 1, 0]
    assert numbers(limit=2) == [5, 4]
    assert numbers(limit=0) == []
    assert numbers(state="queued") == [3, 2, 1, 0]
    assert numbers(state=("succeeded", "failed"), sweep="s1") == [5, 4]
    assert numbers(notebook="train.ipynb", limit=2) == [5, 3]
    assert numbers(notebook="nbs/train.ipynb", sweep="s0") == [1]
    assert numbers(notebook="rain.ipynb") == numbers(sweep="none") == []


def test_a_table_has_a_column_for_each_parameter_and_metric(store):
    for seed, accuracy in enumerate((0.9, float("nan"))):
        parameters = {"seed": seed, "shape": {"$tuple": [64, 32]}, "kind": {"$enum": "__main__.Kind.CNN"}}
        finish(store.create_run({"parameters": parameters}), accuracy=accuracy)
    table = store.frame(state="succeeded")
    assert table["parameters.shape"].tolist() == [(64, 32)] * 2
    assert table["parameters.kind"][0] == {"$enum": "__main__.Kind.CNN"}
    assert table["parameters.seed"].tolist() == [1, 0]
    assert table["metrics.accuracy"].isna().tolist() == [True, False]
    assert str(table["started"].dtype).startswith("datetime64") and table["started"].dt.tz is not None
    assert len(Store(store.folder / "none").frame()) == 0


def test_work_that_was_done_is_found_again(store):
    def asked(seed):
        return {"notebook_sha256": "ab", "parameters": {"seed": seed}}

    works = [fingerprint("ab", {"seed": seed}) for seed in range(4)]
    finish(store.create_run(asked(0)))
    newest = store.create_run(asked(0))
    finish(newest)
    store.create_run(asked(1))
    assert store.find(works[0])["run_id"] == newest.run_id
    assert store.find(works[1]) is None
    assert store.find(works[1], state="queued")["parameters"] == {"seed": 1}
    assert store.find_all(works).keys() == {works[0]}
    assert len(store.find_all([*works, *map(str, range(50_000))], state=("queued", "succeeded"))) == 2


def test_a_run_is_named_by_as_much_as_a_person_types(store):
    runs = [store.create_run({}) for _ in range(3)]
    last = runs[-1].run_id
    assert store.open_run("latest").run_id == max(run.run_id for run in runs)
    assert store.open_run(last).run_id == store.open_run(last[-6:]).run_id == last
    with pytest.raises(UnknownRun, match=f"fits 3 runs in {store.folder}"):
        store.open_run(last[:8])
    with pytest.raises(UnknownRun, match="Did you mean"):
        store.open_run(last[:-1] + "x")
    for name in ("", "../..", "/etc"):
        with pytest.raises(UnknownRun, match="has no run"):
            store.open_run(name)


# A folder that is none


def test_looking_into_a_store_that_does_not_exist_makes_nothing(store):
    assert (store.list_runs(), store.reap(), store.find("x"), len(store.frame())) == ([], [], None, 0)
    with pytest.raises(UnknownRun, match="has no runs yet. Start one: scalekit run NOTEBOOK"):
        store.open_run("latest")
    assert not store.folder.exists()


@pytest.mark.parametrize("below", ["", "runs"], ids=["the file itself", "below it"])
def test_a_file_where_the_store_should_be_is_one_sentence(tmp_path, below):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / below if below else tmp_path / "file")
    with pytest.raises(StoreError, match="can't be created: a file is in the way where a folder should be"):
        store.create_run({})
    with pytest.raises(StoreError, match="runs can't be queued in .*: a file is in the way"):
        store.lease()


def test_a_folder_that_may_not_be_written_is_one_sentence(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match="this user may not write there. Change its owner or mode"):
        Store(tmp_path / "runs").create_run({})


def test_a_lease_on_a_deleted_run_is_one_sentence(store):
    with pytest.raises(StoreError, match="can't be taken on: its folder is gone"):
        Bundle(store.folder / "20260501-120000-123-9f2c1a").lease()
    with pytest.raises(StoreError, match="can't be read: its folder is gone"):
        Bundle(store.folder / "20260501-120000-123-9f2c1a").summary()
    assert isinstance(Lease(store.folder.parent / "free"), Lease)
