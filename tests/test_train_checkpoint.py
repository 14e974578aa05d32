"""Checkpoints of a training: whole or absent, found damaged or loaded bit by bit, on any number of ranks."""

import hashlib
import importlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults import can_mount, die_at_disk, fill, small_disk, started
from processes import wait_until
from torch.distributed import PrefixStore, TCPStore

from scalekit.artifacts import BadValue
from scalekit.core import ScaleKitError, write_atomic
from scalekit.events import StoreError, dump_json
from scalekit.shelf import Damaged
from scalekit.snapshot import DoesNotFit
from scalekit.train.agreement import OtherRankFailed
from scalekit.train.saver import Saver
from scalekit.train.state import ForeignPickle, load_torch_file, put_own, put_state, take_own, take_state

LOSS = ("minimize", "loss")


def steps_in(folder, name="training"):
    return sorted(path.name for path in (folder / name).iterdir())


def save_some(folder, *losses, **options):
    "Step 1, 2, ... with weights that are their number"
    with Saver(folder, goal=LOSS, **options) as saver:
        for step, loss in enumerate(losses, 1):
            state = {"weights": torch.full((5000,), float(step)), "rates": np.full(7, step), "step": step}
            saver.save(step, state, {"seed": step}, {"loss": loss})


def load_quietly(folder, **options):
    with Saver(folder, goal=LOSS, **options) as saver, warnings.catch_warnings():
        warnings.simplefilter("error")
        return saver.load()


# The state is exact


def make_objects():
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=200)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    return objects | {"sampler": {"epoch": 0, "offset": 0}, "best": float("inf")}


def do_step(objects):
    model, optimizer, scaler = (objects[name] for name in ("model", "optimizer", "scaler"))
    x = torch.rand(16, 6) * random.random() + float(np.random.normal())
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    objects["schedule"].step()
    objects["sampler"]["offset"] += 16
    objects["best"] = min(objects["best"], loss.item())


def digest(objects):
    total = hashlib.sha256()
    for name in ("model", "optimizer"):
        for value in torch.utils._pytree.tree_leaves(objects[name].state_dict()):
            total.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    rest = [
        objects["scaler"].state_dict(),
        objects["sampler"],
        objects["best"],
        objects["schedule"].last_epoch,
    ]
    total.update(repr([rest, torch.rand(2).tolist(), random.random(), np.random.rand()]).encode())
    return total.hexdigest()


def train(folder, report, n_steps=100):
    random.seed(2), np.random.seed(3)
    objects = make_objects() | {"ballast": torch.zeros(200_000)}  # so that most kills meet a write
    with open(f"{report}.starts", "a") as starts, open(f"{report}.beats", "a", buffering=1) as beats:
        saver = Saver(folder, goal=LOSS, tell=lambda saved, seconds: beats.write(".\n"))
        begin = 0
        if found := saver.load():
            begin, objects = found.step, put_state(objects, found.state)
            put_own(found.own)
        starts.write(f"{begin}\n")
        starts.flush()
        for step in range(begin, n_steps):
            do_step(objects)
            objects["ballast"] += 1
            saver.save(step + 1, take_state(objects), take_own(), {"loss": objects["best"]})
        saver.close()
    Path(report).write_text(digest(objects) + str(objects["ballast"].unique().tolist()))


def _has_saved(beats, n, pid):
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return beats.stat().st_size // 2 >= n or ended


def train_through_kills(place, n_kills):
    "Once unbroken, and once killed again and again; each time in a fork, for which torch is warm already"
    torch.set_num_threads(1)
    do_step(make_objects())
    train(place / "unbroken", place / "expected")
    chance, beats, n_killed = random.Random(7), place / "report.beats", 0
    beats.touch()
    while not (place / "report").exists():
        n_saved = beats.stat().st_size // 2
        if not (pid := os.fork()):
            train(place / "killed", place / "report")
            os._exit(0)
        if n_killed < n_kills:  # by what was saved, so that it does not matter how fast the machine is
            enough = n_saved + chance.choice([0, 1, 1, 2])
            wait_until(lambda n=enough, pid=pid: _has_saved(beats, n, pid))
            time.sleep(chance.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
        n_killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
    (place / "killed.txt").write_text(str(n_killed))


def test_a_training_that_is_killed_while_it_writes_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    with started(train_through_kills, tmp_path, 20) as child:
        child.join()
    assert child.exitcode == 0
    starts = list(map(int, (tmp_path / "report.starts").read_text().split()))
    assert (tmp_path / "report").read_text() == (tmp_path / "expected").read_text()
    assert (tmp_path / "killed.txt").read_text() == "20"
    assert starts == sorted(starts) and len(set(starts)) > 2


def test_one_that_goes_on_does_the_steps_of_one_that_never_stopped(tmp_path):
    objects = make_objects()
    with Saver(tmp_path) as saver:
        for _ in range(5):
            do_step(objects)
        saver.save(5, take_state(objects), take_own())
        for _ in range(5):
            do_step(objects)
        expected = digest(objects)
        found = saver.load()
    again = put_state(make_objects(), found.state)
    put_own(found.own)
    for _ in range(5):
        do_step(again)
    assert (found.step, digest(again)) == (5, expected)


def test_a_state_that_does_not_fit_is_one_sentence(tmp_path):
    state = take_state({"model": torch.nn.Linear(3, 1)})
    with pytest.raises(DoesNotFit, match="'model' can't go on from what was saved: Linear doesn't take"):
        put_state({"model": torch.nn.Linear(4, 1)}, state)
    with pytest.raises(DoesNotFit, match="what was saved has no 'modle'. Did you mean 'model'"):
        put_state({"modle": torch.nn.Linear(3, 1)} | {"model": torch.nn.Linear(3, 1)}, state)


# In the background


class Gate:
    "Holds the writing of files until it is opened"

    def __init__(self, monkeypatch):
        from scalekit.train import parts

        self.reached, self.open, write = threading.Event(), threading.Event(), parts.write_packed

        def wait_and_write(*args):
            self.reached.set()
            assert self.open.wait(20)
            return write(*args)

        monkeypatch.setattr(parts, "write_packed", wait_and_write)


def test_what_the_training_changes_after_a_save_is_not_in_it(tmp_path, monkeypatch):
    gate, objects = Gate(monkeypatch), make_objects()
    array, history, big = np.zeros(3), [1], torch.zeros(3_000_000)
    do_step(objects)
    before = {name: tensor.clone() for name, tensor in objects["model"].state_dict().items()}
    state = take_state(objects) | {"array": array, "history": history, "big": big}
    with Saver(tmp_path) as saver:
        saver.save(1, state, {"array": array})
        assert gate.reached.wait(20)
        do_step(objects)
        array += 1
        history.append(2)
        big += 1
        assert steps_in(tmp_path) != ["1"]  # so `save` did not wait for the disk
        gate.open.set()
        found = saver.load()
    model = found.state["model"].content
    assert all(model[name].equal(before[name]) for name in before)
    assert not model["0.weight"].equal(objects["model"][0].weight)
    assert (found.state["array"].tolist(), found.own["array"].tolist()) == ([0, 0, 0], [0, 0, 0])
    assert (found.state["history"], found.state["big"].any().item()) == ([1], False)


def test_a_save_waits_for_the_one_before_it(tmp_path, monkeypatch):
    gate, weights = Gate(monkeypatch), torch.zeros(1_000_000)
    with Saver(tmp_path) as saver:
        saver.save(1, {"weights": weights})
        weights += 1
        threading.Timer(0.2, gate.open.set).start()
        saver.save(2, {"weights": weights})
        assert steps_in(tmp_path)[-1] in ("1", "2") and gate.open.is_set()
    assert steps_in(tmp_path) == ["1", "2"]
    shutil.rmtree(tmp_path / "training/2")
    assert load_quietly(tmp_path).state["weights"].any().item() is False


def break_once(monkeypatch, error):
    from scalekit.train import parts

    write = parts.write_packed

    def fail(*args):
        monkeypatch.setattr(parts, "write_packed", write)
        raise error

    monkeypatch.setattr(parts, "write_packed", fail)


def test_an_error_in_the_background_is_raised_at_the_next_save_and_the_one_after_works(tmp_path, monkeypatch):
    save_some(tmp_path, 0.5)
    with Saver(tmp_path) as saver:
        break_once(monkeypatch, OSError(28, "No space left on device"))
        saver.save(2, {"n": 2})
        with pytest.raises(StoreError, match="'training': step 2 can't be saved: the disk is full"):
            saver.save(3, {"n": 3})
        assert steps_in(tmp_path) == ["1"]
        saver.save(3, {"n": 3})
    assert steps_in(tmp_path) == ["1", "3"]


def test_the_way_out_of_a_full_disk_is_the_one_by_which_its_folder_was_named(tmp_path, monkeypatch):
    bundle, folder = tmp_path / "run", tmp_path / "mine"
    bundle.mkdir()
    (bundle / "run.json").write_text("{}")
    for place, way in (
        (bundle / "checkpoints", "in SCALEKIT_STORE"),
        (folder, r"by launch\(\.\.\., folder="),
    ):
        with Saver(place, asynchronous=False) as saver:
            break_once(monkeypatch, OSError(28, "No space left on device"))
            with pytest.raises(StoreError, match=f"the disk is full.*or name another folder {way}"):
                saver.save(1, {"n": 1})


def test_an_error_in_the_background_is_raised_by_close_and_by_a_save_that_waits(tmp_path, monkeypatch):
    saver = Saver(tmp_path)
    break_once(monkeypatch, RuntimeError("a broken driver"))
    saver.save(1, {"n": 1})
    with pytest.raises(RuntimeError, match="a broken driver"):
        saver.close()
    with Saver(tmp_path, asynchronous=False) as saver:
        break_once(monkeypatch, RuntimeError("a broken driver"))
        with pytest.raises(RuntimeError, match="a broken driver"):
            saver.save(1, {"n": 1})
        saver.save(1, {"n": 1})
        assert steps_in(tmp_path) == ["1"]


def test_an_error_that_nobody_asked_for_is_told_when_python_ends(tmp_path):
    code = f"""
from scalekit.train import parts
from scalekit.train.saver import Saver
def fail(*args): raise RuntimeError("a broken driver")
parts.write_packed = fail
saver = Saver({str(tmp_path)!r})
saver.save(1, {{"n": 1}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a checkpoint was not saved: a broken driver" in done.stderr


# What is damaged


def _flip(path):
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped byte": _flip,
    "a missing end": lambda path: os.truncate(path, path.stat().st_size - 1),
    "no file": lambda path: path.unlink(),
    "an empty file": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_in_any_file_is_found_and_named_and_the_step_before_is_loaded(tmp_path, damage):
    save_some(tmp_path / "whole", 0.5, 0.4, 0.3, keep_last=3)
    newest = tmp_path / "whole" / "training" / "3"
    names = sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())
    assert names == [
        "arrays.npz", "manifest.json", "rank-0/state.json", "state.json", "tensors.safetensors",
    ]  # fmt: skip
    for name in names:
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        damage(tmp_path / name / "training" / "3" / name)
        with Saver(tmp_path / name) as saver:
            with pytest.warns(
                UserWarning, match=f"a checkpoint is passed over. training/3: {name} .*"
            ) as told:
                found = saver.load()
            saver.save(3, {"n": 3})
        assert len(told) == 1
        assert (found.step, found.own, found.state["step"]) == (2, {"seed": 2}, 2)
        assert found.state["weights"].unique().tolist() == [2.0]
        shutil.rmtree(tmp_path / name)


def test_if_the_newest_two_are_damaged_each_is_told(tmp_path):
    save_some(tmp_path, 0.5, 0.4, 0.3, keep_last=3)
    _flip(tmp_path / "training/3/tensors.safetensors")
    (tmp_path / "training/2/manifest.json").unlink()
    with Saver(tmp_path) as saver, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert saver.load().step == 1
    assert [str(one.message).partition("over. ")[2] for one in told] == [
        "training/2: manifest.json can't be read", "training/3: tensors.safetensors is not as it was saved",
    ]  # fmt: skip


def test_if_none_is_whole_there_is_nothing_to_load_and_a_new_one_counts_as_the_newest(tmp_path):
    save_some(tmp_path, 0.5, 0.4)
    for step in "12":
        _flip(tmp_path / "training" / step / "state.json")
    with Saver(tmp_path) as saver:
        with pytest.warns(UserWarning, match="passed over"):
            assert saver.load() is None
        saver.save(1, {"n": 1})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert saver.load().state == {"n": 1}


def test_a_best_step_that_is_damaged_is_told_and_not_loaded(tmp_path):
    save_some(tmp_path, 0.1, 0.4, 0.3)
    _flip(tmp_path / "training/1/tensors.safetensors")
    with (
        Saver(tmp_path, goal=LOSS) as saver,
        pytest.raises(Damaged, match="training/1: tensors.safetensors is"),
    ):
        saver.load_best()


class Bomb:
    "Reports that it was unpickled"

    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_pickles_of_others_are_passed_over_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_some(tmp_path, 0.5)
    folder = tmp_path / "training"
    torch.save({"model": Bomb()}, folder / "last.ckpt")
    (folder / "9").mkdir()
    (folder / "9" / "object-0.pkl").write_bytes(pickle.dumps(Bomb()))
    (folder / "9" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with Saver(tmp_path) as saver, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert saver.load().step == 1
    assert len(told) == 2 and not Path("exploded").exists()
    with pytest.raises(
        ForeignPickle, match=r"last.ckpt: it holds posix.mkdir, and to load that would run code"
    ):
        load_torch_file(folder / "last.ckpt")
    assert not Path("exploded").exists()


def test_a_manifest_that_asks_for_a_pickle_gets_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_some(tmp_path, 0.5)
    place = tmp_path / "training" / "1"
    (place / "object-0.pkl").write_bytes(pickle.dumps(Bomb()))
    text = b'{"state": {"$object": 0, "sha256": "%s"}}' % (
        hashlib.sha256((place / "object-0.pkl").read_bytes()).hexdigest().encode()
    )
    (place / "state.json").write_bytes(text)
    forge(place / "manifest.json", "state.json", text)
    with (
        Saver(tmp_path) as saver,
        pytest.raises(BadValue, match="1: it holds a pickle.*could run any code, so it is refused"),
    ):
        saver.load()
    assert not Path("exploded").exists()


def forge(manifest, name, text):
    "Make a manifest promise another content of a file"
    import xxhash

    found = json.loads(manifest.read_text())["manifest"]
    found["files"][name] = {"size": len(text), "xxh3_128": xxhash.xxh3_128(text).hexdigest()}
    told = hashlib.sha256(dump_json(found, sort_keys=True).encode())
    manifest.write_text(json.dumps({"manifest": found, "sha256": told.hexdigest()}))


def test_what_only_pickle_could_keep_is_refused_by_name_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEKIT_ALLOW_PICKLE", "true")
    with Saver(tmp_path) as saver:
        with pytest.raises(BadValue, match="'state' can't be kept: it holds a .*no form without pickle"):
            saver.save(1, {"lock": threading.Lock()})
        with pytest.raises(BadValue, match="a step is a whole number from 0 on, got 0.5"):
            saver.save(0.5, {})
    assert steps_in(tmp_path) == []


# Killed at any moment, and a full disk


def _save_and_die(folder, nth):
    "Save step 3, and be killed at the `nth` time that something reaches the disk"
    saver = Saver(folder, keep_last=1)
    die_at_disk(nth)
    saver.save(3, {"weights": torch.full((5000,), 3.0), "rates": np.ones(3)}, {"seed": 3})
    saver.close()


def test_a_kill_at_any_moment_of_a_save_leaves_the_old_step_or_the_new_one(tmp_path):
    save_some(tmp_path / "before", 0.5, 0.4)
    found = set()
    for nth in range(1, 60):
        place = tmp_path / str(nth)
        shutil.copytree(tmp_path / "before", place)
        with started(_save_and_die, place, nth) as child:
            child.join()
        loaded = load_quietly(place)
        assert loaded.state["weights"].unique().tolist() == [loaded.step] and loaded.own == {
            "seed": loaded.step
        }
        assert all(name.isdigit() for name in steps_in(place))
        found.add((child.exitcode, loaded.step))
        if child.exitcode == 0:
            break
    assert found == {(-9, 2), (-9, 3), (0, 3)}


@pytest.mark.skipif(not can_mount, reason="only root can mount a disk")
def test_a_full_disk_is_one_sentence_and_the_last_step_stays(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        weights = torch.zeros(50_000)
        with Saver(disk, keep_last=1) as saver:
            saver.save(1, {"weights": weights})
            saver.wait()
            for but in (0, 4_000, 100_000, 204_000):
                filler = fill(disk, but=but)
                weights += 1
                saver.save(2, {"weights": weights})
                with pytest.raises(StoreError, match=r"disk is full.*another folder by launch\(") as caught:
                    saver.wait()
                assert "step 2 can't be saved" in str(caught.value)
                filler.unlink()
                assert steps_in(disk) == ["1"]
            saver.save(2, {"weights": weights})
        assert load_quietly(disk).state["weights"].unique().tolist() == [4.0]


# What stays


def test_the_newest_the_best_and_every_nth_stay(tmp_path):
    save_some(tmp_path, 0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, keep_last=2, keep_best=1, keep_every=3)
    assert steps_in(tmp_path) == ["2", "3", "6", "7", "8"]
    with Saver(tmp_path, goal=LOSS) as saver:
        assert (saver.load_best().step, saver.load_best().metrics) == (2, {"loss": 0.1})
        saver.save(9, {"n": 9})
    assert steps_in(tmp_path) == ["2", "8", "9"]


def test_the_old_step_goes_only_when_the_new_one_has_its_name(tmp_path, monkeypatch):
    save_some(tmp_path, 0.5)
    with Saver(tmp_path, keep_last=1) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(OSError(5, "I/O error")))
            saver.save(2, {"n": 2})
            with pytest.raises(StoreError, match="step 2 can't be saved"):
                saver.wait()
        assert steps_in(tmp_path) == ["1"]


def test_a_training_that_begins_anew_beside_old_steps_is_the_newest(tmp_path):
    save_some(tmp_path, 0.5, 0.4, 0.3)
    with Saver(tmp_path) as saver:
        saver.save(1, {"n": "anew"})
    assert load_quietly(tmp_path).state == {"n": "anew"}


def test_two_trainings_in_a_folder_know_nothing_of_each_other(tmp_path):
    for name in ("generator", "judge"):
        with Saver(tmp_path, name=name) as saver:
            assert saver.load() is None
            saver.save(1, {"name": name})
    with Saver(tmp_path, name="generator") as saver:
        assert saver.load().state == {"name": "generator"}


def test_without_a_folder_only_the_best_is_kept_and_in_memory():
    weights = torch.zeros(2)
    with Saver(None, goal=LOSS) as saver:
        with pytest.raises(BadValue, match="no step is the best one. Write first: save"):
            saver.load_best()
        for step in range(4):
            weights += 1
            saver.save(step, {"weights": weights}, metrics={"loss": abs(step - 1)})
        assert saver.load() is None
        found = saver.load_best()
        assert (found.step, found.state["weights"].tolist()) == (1, [2.0, 2.0])


def test_the_teller_hears_of_steps_that_are_on_disk(tmp_path):
    heard = []
    with Saver(
        tmp_path, tell=lambda saved, seconds: heard.append((saved.step, saved.size > 0, seconds > 0))
    ) as saver:
        saver.save(1, {"n": torch.zeros(3)})
        saver.wait()
        assert heard == [(1, True, True)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep_last": 0}, "keep_last is a whole number from 1 on"),
        ({"keep_every": 0.5}, "keep_every is a whole"),
    ],
)
def test_a_wrong_option_is_told_at_once(tmp_path, options, reason):
    with pytest.raises(BadValue, match=reason):
        Saver(tmp_path, **options)


# Several ranks


class Threads:
    "Ranks that are threads"

    def __init__(self, size):
        self.size, self.values, self.barrier = size, [b""] * size, threading.Barrier(size, timeout=120)

    def gather(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found

    def each(self, act):
        "What `act(world)` gives on each rank; its error where it raises"

        def run(rank):
            control = SimpleNamespace(gather=lambda key, value: self.gather(rank, value))
            try:
                return act(SimpleNamespace(rank=rank, size=self.size, control=control))
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(run, range(self.size)))


def save_own(folder, step=1):
    def act(world):
        with Saver(folder, world) as saver:
            saver.save(
                step, {"weights": torch.ones(10) * step}, {"seed": 10 * world.rank, "rng": np.arange(3)}
            )

    return act


def load_own(folder):
    def act(world):
        with Saver(folder, world) as saver:
            return saver.load()

    return act


def test_each_rank_has_its_own_again_and_a_new_one_has_none(tmp_path):
    assert Threads(2).each(save_own(tmp_path)) == [None, None]
    names = sorted(path.name for path in (tmp_path / "training/1").iterdir())
    assert names == ["manifest.json", "rank-0", "rank-1", "state.json", "tensors.safetensors"]
    for size in (2, 3, 1):
        found = Threads(size).each(load_own(tmp_path))
        assert [one.step for one in found] == [1] * size and found[0].size == 2
        assert [one.own and one.own["seed"] for one in found] == [0, 10, None][:size]
        assert all(one.state["weights"].tolist() == [1.0] * 10 for one in found)


def test_if_one_rank_can_t_write_none_has_saved_and_all_are_told(tmp_path):
    save_some(tmp_path, 0.5)

    def act(world):
        saver = Saver(tmp_path, world)
        if world.rank == 1:
            saver._shelf.folder = tmp_path / "another machine"
        saver.save(2, {"n": 2})
        try:
            saver.save(3, {"n": 3})
        finally:
            saver._writer.shutdown()

    first, second = Threads(2).each(act)
    assert isinstance(first, OtherRankFailed) and isinstance(second, StoreError)
    assert "rank 1: checkpoint 'training': step 2 can't be saved: its folder is gone" in str(first)
    assert steps_in(tmp_path) == ["1"] and load_quietly(tmp_path).step == 1


def test_all_ranks_go_back_to_the_same_step_when_one_rank_s_file_is_damaged(tmp_path):
    for step in (1, 2):
        Threads(2).each(save_own(tmp_path, step))
    _flip(tmp_path / "training/2/rank-1/arrays.npz")
    with pytest.warns(UserWarning, match="training/2: rank-1/arrays.npz is not as it was saved"):
        found = Threads(2).each(load_own(tmp_path))
    assert [(one.step, one.own["seed"]) for one in found] == [(1, 0), (1, 10)]


def in_gloo(rank, size, place, act, *args):
    "A rank in a process of its own; the first one has the store, and tells its port in a file"
    from scalekit.ranks.world import Exchange

    told = place / "port"
    if rank:
        wait_until(told.exists)
    store = TCPStore(
        "127.0.0.1", 0 if rank == 0 else int(told.read_text()), is_master=rank == 0, wait_for_workers=False
    )
    if rank == 0:
        write_atomic(told, str(store.port))
    torch.distributed.init_process_group(
        "gloo", store=PrefixStore("group", store), rank=rank, world_size=size
    )
    control = Exchange(rank, size, PrefixStore("control", store), timeout=120)
    act(SimpleNamespace(rank=rank, size=size, control=control), *args)
    torch.distributed.destroy_process_group()
    if rank:
        control.put(f"left/{rank}", b"")
    else:  # the store goes with this process
        for other in range(1, size):
            control.get(f"left/{other}")


def fork_ranks(place, stages):
    "One group of ranks after the other, each rank a fork for which torch is warm already"
    torch.set_num_threads(1)
    do_step(make_objects())
    importlib.import_module("torch.distributed.fsdp")
    for size, act, *args in stages:
        (place / "port").unlink(missing_ok=True)
        pids = []
        for rank in range(size):
            pids.append(os.fork())
            if not pids[-1]:
                try:
                    in_gloo(rank, size, place, act, *args)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
        ends = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(ends):
            sys.exit(f"{size} ranks ended with {ends}")


def run_gloo(place, *stages):
    with started(fork_ranks, place, stages) as child:
        child.join(240)
        assert child.exitcode == 0


def train_sharded(world, folder, n_steps, sharded, report):
    "Layers that two ranks can't share evenly; every rank sees the same data, so any number has the same sums"
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 1)
    )
    if sharded:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world.size,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    objects, begin = {"model": model, "optimizer": optimizer}, 0
    with Saver(folder, world) as saver:
        if found := saver.load():
            begin = found.step
            put_state(objects, found.state)
            put_own(found.own or take_own())
        for step in range(begin, n_steps):
            x = torch.linspace(-1, 1, 48).reshape(8, 6) * (step + 1)
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
            saver.save(step + 1, take_state(objects), take_own())
            if sharded:  # the process group is busy while the step is written
                torch.distributed.all_reduce(torch.ones(1))
    values = [
        value.full_tensor() if hasattr(value, "full_tensor") else value
        for value in model.state_dict().values()
    ]
    if world.rank == 0:
        torch.save(values, report)


def test_a_sharded_model_goes_on_on_another_number_of_ranks_and_back(tmp_path):
    def stage(size, n_steps, sharded):
        return size, train_sharded, tmp_path / "moved", n_steps, sharded, tmp_path / "found.pt"

    run_gloo(
        tmp_path,
        (1, train_sharded, tmp_path / "whole", 6, False, tmp_path / "expected.pt"),
        *(stage(*each) for each in [(2, 2, True), (1, 3, False), (2, 4, True), (1, 5, True), (2, 6, True)]),
    )
    expected, found = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("expected", "found")
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    files = sorted(path.name for path in (tmp_path / "moved/training/6/shards").iterdir())
    assert files == ["rank-0.safetensors", "rank-1.safetensors"]
    assert load_quietly(tmp_path / "moved").step == 6


def save_and_compare_sharded(world, folder):
    "Saved and loaded on the same ranks, every bit of every piece is the same"
    from torch.distributed.fsdp import fully_shard

    def make(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))
        fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters())}

    objects, again = make(1), make(2)
    objects["model"](torch.ones(2, 5)).sum().backward()
    objects["optimizer"].step()
    with Saver(folder, world) as saver:
        saver.save(1, take_state(objects), take_own())
        put_state(again, saver.load().state)
    pairs = zip(
        torch.utils._pytree.tree_leaves([objects[name].state_dict() for name in objects]),
        torch.utils._pytree.tree_leaves([again[name].state_dict() for name in again]),
        strict=True,
    )
    for old, new in pairs:
        old, new = (one.to_local() if hasattr(one, "to_local") else one for one in (old, new))
        assert old.equal(new) if isinstance(old, torch.Tensor) else old == new


def test_every_piece_comes_back_bit_by_bit_and_a_flipped_byte_in_one_is_found(tmp_path):
    run_gloo(tmp_path, (2, save_and_compare_sharded, tmp_path))
    _flip(tmp_path / "training/1/shards/rank-1.safetensors")
    with (
        Saver(tmp_path) as saver,
        pytest.warns(UserWarning, match="1: shards/rank-1.safetensors is not as it was"),
    ):
        assert saver.load() is None


def test_ranks_without_a_way_to_agree_are_told_how_to_get_one(tmp_path):
    saver = Saver(tmp_path, SimpleNamespace(rank=0, size=2, control=None))
    with pytest.raises(ScaleKitError, match="2 ranks need a way to agree.*sk.launch"):
        saver.load()
