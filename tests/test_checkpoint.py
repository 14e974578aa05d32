"""The slot of a training: what is saved comes back bit by bit, whatever happens in between."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from faults import can_mount, die_at_disk, fill, small_disk, started
from notebooks import write_notebook

import scalekit as sk
from scalekit import signing
from scalekit.artifacts import BadValue
from scalekit.bundle import Bundle, SealedBundle
from scalekit.checkpoints import checkpoint, link_checkpoints
from scalekit.events import StoreError
from scalekit.packing import STRUCTURE, pack, unpack
from scalekit.shelf import Damaged
from scalekit.snapshot import take_random
from scalekit.store import Store


@pytest.fixture(autouse=True)
def key(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEKIT_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.delenv("SCALEKIT_ALLOW_PICKLE", raising=False)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    "The run that this test is in"
    bundle = Store(tmp_path / "runs").create_run({"notebook": "train.ipynb"})
    monkeypatch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
    return bundle


def steps_of(bundle, name="default"):
    return sorted(os.listdir(bundle.path / "checkpoints" / name))


def save_steps(*losses, **options):
    slot = checkpoint(history=[], goal="minimize loss", **options)
    for step, loss in enumerate(losses, 1):
        slot["history"].append(loss)
        slot.save(step, loss=loss)
    return slot


# What it is for


def test_a_training_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path):
    script = Path(__file__).with_name("training.py")
    out = subprocess.run(
        [sys.executable, script, tmp_path, "7", "40"], check=True, capture_output=True, text=True
    )
    unbroken, killed = json.loads(out.stdout.splitlines()[-1])
    assert (killed["exit"], killed["killed"] >= 8) == (0, True)
    assert killed["starts"] == sorted(killed["starts"]) and len(set(killed["starts"])) > 4
    assert killed["digest"] == unbroken["digest"]


def _save_and_die(nth):
    "Save step 3, and be killed at the `nth` time that something reaches the disk"
    slot = save_steps()
    die_at_disk(nth)
    slot["history"].append(0.1)
    slot["array"] = np.arange(3)
    slot.save(3, loss=0.1)


def test_a_kill_at_any_moment_of_a_save_leaves_the_old_step_or_the_new_one(bundle, tmp_path):
    save_steps(0.3, 0.2)
    before, found = tmp_path / "before", set()
    shutil.copytree(bundle.path, before)
    for nth in range(1, 60):
        shutil.rmtree(bundle.path)
        shutil.copytree(before, bundle.path)
        with started(_save_and_die, nth) as child:
            child.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            slot = save_steps()
        assert slot["history"] == [0.3, 0.2, 0.1][: slot.step]
        assert all(name.isdigit() for name in steps_of(bundle))
        found.add((child.exitcode, slot.step))
        if child.exitcode == 0:
            break
    assert found == {(-9, 2), (-9, 3), (0, 3)}


# What is damaged, and what is foreign


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped byte in the tensors": lambda step: _flip(step / "tensors.safetensors"),
    "a flipped byte in the arrays": lambda step: _flip(step / "arrays.npz"),
    "a flipped byte in the structure": lambda step: _flip(step / "state.json"),
    "a flipped byte in the manifest": lambda step: _flip(step / "manifest.json"),
    "a truncated file": lambda step: os.truncate(step / "tensors.safetensors", 100),
    "an empty manifest": lambda step: os.truncate(step / "manifest.json", 0),
    "a missing manifest": lambda step: (step / "manifest.json").unlink(),
    "a missing file": lambda step: (step / "arrays.npz").unlink(),
    "a file in place of the folder": lambda step: (shutil.rmtree(step), step.write_text("")),
    "a deep manifest": lambda step: (step / "manifest.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_step_is_passed_over_for_the_last_good_one(bundle, damage):
    for step in (1, 2):
        slot = checkpoint(weights=torch.zeros(8), rates=np.zeros(8))
        slot["weights"] += step
        slot.save(step)
    damage(bundle.path / "checkpoints" / "default" / "2")
    with pytest.warns(UserWarning, match=r"a checkpoint is passed over. default/2: \S+ .*"):
        slot = checkpoint(weights=torch.zeros(8), rates=np.zeros(8))
    assert (slot.step, slot["weights"].tolist()) == (1, [1.0] * 8)
    slot["weights"] += 2
    slot.save(2)
    with pytest.warns(UserWarning, match="passed over"):
        again = checkpoint(weights=torch.zeros(8), rates=np.zeros(8))
    assert (again.step, again["weights"].tolist()) == (2, [3.0] * 8)


class _Bomb:
    "Reports that it was unpickled"

    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed by another"])
def test_a_step_that_somebody_else_made_is_never_loaded(bundle, tmp_path, monkeypatch, signed):
    monkeypatch.setenv("SCALEKIT_ALLOW_PICKLE", "true")
    monkeypatch.chdir(tmp_path)
    slot = checkpoint(bomb=_Bomb())
    if signed:
        monkeypatch.setenv("SCALEKIT_KEY_FILE", str(tmp_path / "key of another"))
    slot.save(1)
    monkeypatch.setenv("SCALEKIT_KEY_FILE", str(tmp_path / "key"))
    if not signed:
        manifest = bundle.path / "checkpoints/default/1/manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "signature": ""}))
    with pytest.warns(
        UserWarning, match="default/1: manifest.json was not written by this user, or was changed"
    ):
        assert checkpoint(bomb=None).step == 0
    assert not Path("exploded").exists()


def test_a_pickle_that_is_exchanged_is_never_loaded(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEKIT_ALLOW_PICKLE", "true")
    monkeypatch.chdir(tmp_path)
    checkpoint(words=_Bomb()).save(1)
    (bundle.path / "checkpoints/default/1/object-0.pkl").write_bytes(b"cos\nmkdir\n(S'exploded'\ntR.")
    with pytest.warns(UserWarning, match="object-0.pkl is not"):
        assert checkpoint(words=None).step == 0
    assert not Path("exploded").exists()


def test_a_step_of_another_slot_is_not_taken_for_one_s_own(bundle):
    checkpoint("gan", history=[1]).save(1)
    shutil.copytree(bundle.path / "checkpoints/gan", bundle.path / "checkpoints/default")
    with pytest.warns(UserWarning, match="was not written by this user, or was changed"):
        assert checkpoint(history=[]).step == 0


def test_a_best_step_that_is_damaged_is_told_and_not_loaded(bundle):
    slot = save_steps(0.1, 0.2, 0.3)
    _flip(bundle.path / "checkpoints/default/1/state.json")
    with pytest.raises(Damaged, match="default/1: state.json is not as it was saved"):
        slot.load_best("history")


@pytest.mark.skipif(not can_mount, reason="only root can mount a disk")
def test_a_full_disk_is_one_sentence_and_the_last_step_stays(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "4m") as disk:
        bundle = Store(disk / "runs").create_run({"notebook": "train.ipynb"})
        monkeypatch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
        slot = checkpoint(weights=torch.zeros(10_000), rates=np.zeros(10_000))
        slot.save(1)
        for but in (0, 4_000, 30_000, 60_000, 100_000):
            filler = fill(disk, but=but)
            slot["weights"] += 1
            with pytest.raises(
                StoreError, match="can't save a checkpoint: the disk is full. Free some space"
            ):
                slot.save(2)
            filler.unlink()
            assert (steps_of(bundle), slot.step) == (["1"], 1)
        slot.save(2)
        assert checkpoint(weights=torch.zeros(10_000), rates=np.zeros(10_000))["weights"][0] == 5


# What stays


def test_only_the_newest_and_the_best_steps_stay(bundle):
    slot = save_steps(0.5, 0.1, 0.4, 0.3, 0.2, keep_last=2, keep_best=1)
    assert steps_of(bundle) == ["2", "4", "5"]
    assert (slot.best.step, slot.best.values) == (2, {"loss": 0.1})
    assert save_steps().best == slot.best


def test_a_loss_that_is_no_number_is_never_the_best(bundle):
    assert save_steps(float("nan"), 0.5, float("nan"), float("-inf")).best.step == 2
    assert checkpoint("other", goal="max acc").best is None


def test_the_old_steps_go_only_when_the_new_one_is_whole(bundle, monkeypatch):
    slot = save_steps(0.3, 0.2, keep_last=1)
    monkeypatch.setattr(
        os, "rename", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(StoreError):
        slot.save(3, loss=0.1)
    monkeypatch.undo()
    assert steps_of(bundle) == ["2"]


def test_two_slots_of_one_notebook_know_nothing_of_each_other(bundle):
    for name, start in (("generator", 10), ("judge", 20)):
        slot = checkpoint(name, history=[start])
        slot.save(start)
    found = {name: checkpoint(name, history=[]) for name in ("generator", "judge")}
    assert [(slot.step, slot["history"]) for slot in found.values()] == [(10, [10]), (20, [20])]


def test_a_step_that_is_saved_again_counts_as_the_newest(bundle):
    slot = checkpoint(history=[])
    for content, step in enumerate((5, 6, 2, 2), 1):
        slot["history"].append(content)
        slot.save(step)
    slot = checkpoint(history=[])
    assert (slot.step, slot["history"], len(steps_of(bundle))) == (2, [1, 2, 3, 4], 2)


def test_a_run_that_goes_on_has_the_steps_of_the_old_one_and_each_forgets_its_own(
    bundle, tmp_path, monkeypatch
):
    save_steps(0.3, 0.2)
    new = Store(tmp_path / "runs").create_run({"notebook": "train.ipynb"})
    link_checkpoints(bundle, new)
    link_checkpoints(Bundle(tmp_path / "none"), new)
    monkeypatch.setenv("SCALEKIT_BUNDLE", str(new.path))
    slot = save_steps(keep_last=1)
    assert (slot.step, slot.best.step) == (2, 2)
    slot.save(3, loss=0.1)
    assert (steps_of(bundle), steps_of(new)) == (["1", "2"], ["3"])
    assert (new.path / "checkpoints/default/3/state.json").stat().st_nlink == 1


def test_the_bundle_is_told_of_each_save_and_sealed_with_the_steps(bundle):
    bundle.set_state("running")
    slot = save_steps(0.5)
    (event,) = [event for event in bundle.events() if event["event"] == "checkpoint"]
    size = sum(path.stat().st_size for path in (bundle.path / "checkpoints/default/1").iterdir())
    assert (event["name"], event["step"], event["values"]) == ("default", 1, {"loss": 0.5})
    assert 0 < event["bytes"] <= size and event["seconds"] > 0
    bundle.set_state("succeeded")
    bundle.seal()
    with pytest.raises(SealedBundle):
        slot.save(2, loss=0.1)
    assert bundle.verify() == []


def test_to_save_draws_no_random_number(bundle):
    before = repr(take_random())
    save_steps(0.5)
    assert repr(take_random()) == before


def test_the_streams_of_random_numbers_go_on_after_the_step(bundle):
    slot = checkpoint(
        rng=np.random.default_rng(1), own=random.Random(2), torch=torch.Generator().manual_seed(3)
    )

    def draw(slot):
        own = [slot["rng"].random(), slot["own"].random(), float(torch.rand((), generator=slot["torch"]))]
        return [*own, random.random(), float(np.random.normal()), float(torch.rand(()))]

    draw(slot)
    slot.save(1)
    expected = draw(slot)
    draw(slot)
    again = checkpoint(rng=np.random.default_rng(), own=random.Random(), torch=torch.Generator())
    assert draw(again) == expected


# What can be kept


def there_and_back(tmp_path, **values):
    folder = tmp_path / "packed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pack(values, folder)
    return unpack((folder / STRUCTURE).read_bytes(), folder)


PLAIN = {
    "numbers": [1, 2**80, 0.1, float("inf"), True, None, 1 + 2j, np.float32(0.1), np.int8(3)],
    "text": ["ä", "\ud800", b"\x00", "$tensor"],
    "containers": [(1,), {1, 2}, frozenset({3}), {}, [], (), {(1, 2): {"$state": 1}}, Counter("aab")],
    "ordered": OrderedDict([("b", 1), ("a", 2)]),
    "default": defaultdict(list, {"a": [1]}),
    "recent": deque([1, 2, 3], maxlen=3),
    "day": date(2026, 5, 1),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_come_back_equal_and_of_their_type(tmp_path, name):
    found = there_and_back(tmp_path, value=PLAIN[name])["value"]
    assert (found, repr(found)) == (PLAIN[name], repr(PLAIN[name]))


ARRAYS = {
    "whole numbers": np.arange(6).reshape(2, 3),
    "columns first": np.asfortranarray(np.ones((2, 3))),
    "no elements": np.zeros((0, 3)),
    "no axes": np.array(1.5),
    "dates": np.array(["2026-05-01"], "datetime64[D]"),
    "records": np.array([(1, 0.5)], [("a", int), ("b", float)]),
    "texts": np.array(["a", "bc"]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_by_bit(tmp_path, name):
    found = there_and_back(tmp_path, value=ARRAYS[name])["value"]
    assert found.dtype == ARRAYS[name].dtype and found.shape == ARRAYS[name].shape
    assert found.tobytes() == ARRAYS[name].tobytes()
    assert found.flags.f_contiguous == ARRAYS[name].flags.f_contiguous


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.uint16,
          torch.complex64, torch.complex128, torch.float8_e4m3fn]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_tensors_come_back_bit_by_bit(tmp_path, dtype, shape):
    value = torch.randn(shape).abs().to(dtype)
    found = there_and_back(tmp_path, value=value)["value"]
    assert (found.dtype, found.shape, type(found)) == (value.dtype, value.shape, torch.Tensor)
    assert found.reshape(-1).view(torch.uint8).equal(value.reshape(-1).view(torch.uint8))


def test_tensors_of_one_memory_come_back_so_and_views_as_what_they_show(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    values = {"a": base, "b": base, "row": base[1], "turned": base.T, "conj": torch.tensor([1 + 2j]).conj()}
    found = there_and_back(tmp_path, **values)
    assert found["a"] is found["b"]
    assert all(found[name].equal(values[name]) for name in values)


def test_parameters_and_gradients_stay_what_they_are(tmp_path):
    values = {"p": torch.nn.Parameter(torch.ones(2)), "q": torch.nn.Parameter(torch.ones(2), False),
              "t": torch.ones(2, requires_grad=True)}  # fmt: skip
    found = there_and_back(tmp_path, **values)
    assert [(type(found[name]), found[name].requires_grad) for name in values] == [
        (type(value), value.requires_grad) for value in values.values()
    ]


def test_a_temporary_tensor_never_takes_the_place_of_another(tmp_path):
    class Model:
        def state_dict(self):
            return {str(number): torch.full((1000,), number) + 0 for number in range(50)}

        def load_state_dict(self, state):
            self.state = state

    os.environ["SCALEKIT_BUNDLE"] = str(Store(tmp_path / "runs").create_run({"notebook": "a.ipynb"}).path)
    try:
        checkpoint(model=Model()).save(1)
        state = checkpoint(model=Model())["model"].state
    finally:
        del os.environ["SCALEKIT_BUNDLE"]
    assert [int(state[str(number)][0]) for number in range(50)] == list(range(50))


FRAMES = {
    "numbers": pd.DataFrame({"a": [1, 2], "b": [0.5, float("nan")]}),
    "an index": pd.DataFrame({"a": ["x", "y"]}, index=pd.Index([7, 9], name="id")),
    "categories and dates": pd.DataFrame(
        {"c": pd.Categorical(["u", "v"]), "d": pd.date_range("2026", periods=2)}
    ),
    "a column": pd.Series([1.5, 2.5], name="loss", index=[3, 4]),
    "a column without a name": pd.Series([1, 2]),
    "no rows": pd.DataFrame({"a": pd.Series([], dtype="int8")}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_tables_come_back_equal(tmp_path, name):
    found = there_and_back(tmp_path, value=FRAMES[name])["value"]
    check = pd.testing.assert_frame_equal if hasattr(found, "columns") else pd.testing.assert_series_equal
    check(found, FRAMES[name], check_exact=True, check_freq=False)


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"a": [1, "x"]}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame({"a": [object()]}),
    ],
    ids=["mixed types", "two columns of a name", "objects"],
)
def test_a_table_that_parquet_would_change_is_refused(tmp_path, table):
    with pytest.raises(BadValue, match="'value' can't be kept: it holds a pandas.DataFrame"):
        there_and_back(tmp_path, value=table)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.norm = torch.nn.BatchNorm1d(3)


def test_tied_weights_stay_tied_and_are_on_disk_once(bundle):
    model = Tied()
    checkpoint(model=model).save(1)
    again = Tied()
    checkpoint(model=again)
    assert again.one.weight is again.two.weight and again.one.weight.equal(model.one.weight)
    structure = json.loads((bundle.path / "checkpoints/default/1/state.json").read_text())
    told = dict(structure["objects"]["model"]["$state"]["$OrderedDict"])
    assert told["one.weight"] == told["two.weight"]


OPTIMIZERS = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "LBFGS", "Rprop", "NAdam", "Adadelta", "ASGD"]
SCHEDULES = {
    "MultiStepLR": {"milestones": [2, 3, 3]}, "ReduceLROnPlateau": {}, "CosineAnnealingLR": {"T_max": 9},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 9}, "StepLR": {"step_size": 2},
    "LambdaLR": {"lr_lambda": lambda epoch: 1 / (epoch + 1)},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2, "cycle_momentum": False},
}  # fmt: skip


def _one_step(model, optimizer, schedule=None):
    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    if schedule:
        schedule.step(*([loss.item()] if "Plateau" in type(schedule).__name__ else []))


def _make(optimizer, schedule=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    plan = getattr(torch.optim.lr_scheduler, schedule)(made, **SCHEDULES[schedule]) if schedule else None
    return {"model": model, "optimizer": made} | ({"schedule": plan} if plan else {})


@pytest.mark.parametrize(
    ("optimizer", "schedule"), [(name, None) for name in OPTIMIZERS] + [("SGD", name) for name in SCHEDULES]
)
def test_every_optimizer_and_schedule_of_torch_goes_on_as_it_was(bundle, optimizer, schedule):
    first = _make(optimizer, schedule)
    for _ in range(2):
        _one_step(*first.values())
    checkpoint(**first).save(2)
    second = _make(optimizer, schedule)
    assert checkpoint(**second).step == 2
    for objects in (first, second):
        _one_step(*objects.values())
        _one_step(*objects.values())
    assert first["model"].weight.equal(second["model"].weight)
    assert first["optimizer"].param_groups[0]["lr"] == second["optimizer"].param_groups[0]["lr"]


def test_what_the_notebook_s_names_lead_to_is_what_is_restored(bundle):
    history, rates, seen, weights = {"loss": [1]}, np.ones(2), {1}, torch.ones(2)
    checkpoint(history=history, rates=rates, seen=seen, weights=weights, both=[history["loss"], 5]).save(1)
    losses = history["loss"]
    losses.append(2), seen.add(2), weights.zero_()
    rates[:], history["new"] = 0, 1
    slot = checkpoint(history=history, rates=rates, seen=seen, weights=weights, both=[None])
    assert (losses, history, seen, rates.tolist(), weights.tolist()) == (
        [1],
        {"loss": [1]},
        {1},
        [1, 1],
        [1, 1],
    )
    assert slot["both"] == [[1], 5]


def test_a_number_is_given_to_the_slot_and_read_from_it(bundle):
    slot = checkpoint(best=float("inf"), name="numbers")
    slot["best"], slot["note"] = 0.5, "new"
    slot.save(1)
    slot = checkpoint(best=float("inf"), name="numbers")
    assert (slot["best"], "nothing" in slot) == (0.5, False)
    with pytest.raises(KeyError, match="Did you mean 'best'"):
        slot["bset"]


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), (x for x in "a"), object(), lambda: 1],
    ids=["lock", "generator", "object", "function"],
)
def test_what_has_no_form_is_told_where_it_is_given_and_not_after_the_first_epoch(bundle, value):
    with pytest.raises(BadValue, match="'thing' can't be kept: it holds a .*allow_pickle = true") as caught:
        checkpoint(thing={"inside": [value]})
    assert "state_dict() and load_state_dict()" in str(caught.value)
    assert steps_of_nothing(bundle)


def steps_of_nothing(bundle):
    return os.listdir(bundle.path / "checkpoints") == []


def test_pickle_is_used_where_the_user_allows_it_and_refused_later_where_not(bundle, monkeypatch):
    monkeypatch.setenv("SCALEKIT_ALLOW_PICKLE", "true")
    checkpoint(double=lambda x: 2 * x).save(1)
    assert checkpoint(double=None)["double"](4) == 8
    with pytest.raises(BadValue, match="it holds a _?thread.lock, which can't even be pickled"):
        checkpoint("other", lock=threading.Lock())
    monkeypatch.setenv("SCALEKIT_ALLOW_PICKLE", "false")
    with pytest.raises(BadValue, match="step 1 can't be read: .*allow_pickle = true"):
        checkpoint(double=None)


# Mistakes


def test_another_model_than_the_saved_one_is_one_sentence(bundle):
    checkpoint(model=torch.nn.Linear(3, 1), history=[]).save(1)
    with pytest.raises(BadValue, match=r"'model' can't go on .* Linear doesn't take its state.*another slot"):
        checkpoint(model=torch.nn.Linear(4, 1), history=[])
    with pytest.raises(BadValue, match=r"it has a state \(state_dict\) for what is int here"):
        checkpoint(model=3, history=[])
    with pytest.raises(BadValue, match="'modle' was not saved. Did you mean 'model'"):
        checkpoint(modle=torch.nn.Linear(3, 1), history=[])


def test_there_is_no_best_without_a_goal(bundle):
    slot = checkpoint(history=[])
    slot.save(1, loss=0.5)
    assert slot.best is None
    with pytest.raises(BadValue, match="no step is the best one. Write first: checkpoint"):
        slot.load_best()
    with pytest.raises(BadValue, match="this save has no 'loss'"):
        save_steps().save(1, lss=0.5)


# Without a run


def test_without_a_run_nothing_is_written_and_the_best_is_still_there(tmp_path, monkeypatch):
    monkeypatch.delenv("SCALEKIT_BUNDLE", raising=False)
    monkeypatch.chdir(tmp_path)
    model, lock = torch.nn.Linear(2, 1), threading.Lock()
    slot = checkpoint(model=model, lock=lock, history=[], goal="minimize loss")
    weights = []
    for step in range(slot.step, 4):
        torch.nn.init.constant_(model.weight, step)
        slot.save(step + 1, loss=abs(step - 1))
        weights.append(model.weight[0, 0].item())
    assert (slot.step, slot.best.step, slot.load_best().step) == (4, 2, 2)
    assert (float(model.weight[0, 0]), os.listdir()) == (1.0, [])
    assert checkpoint(model=model).step == 0


def test_without_a_run_no_heavy_library_is_imported():
    code = "import sys, scalekit as sk; s = sk.checkpoint(history=[]); s.save(1)\n"
    code += "assert not {'numpy', 'torch', 'pandas', 'safetensors'} & set(sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "SCALEKIT_BUNDLE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# In a run


def test_a_notebook_saves_into_its_own_bundle(place):
    cell = "import scalekit as sk\nslot = sk.checkpoint(history=[], goal='minimize loss')\n"
    cell += (
        "for step in range(slot.step, 3):\n    slot['history'].append(step); slot.save(step + 1, loss=-step)"
    )
    write_notebook(Path("a.ipynb"), cell, "slot.load_best('history').step")
    run = sk.run("a.ipynb")
    assert steps_of(run.bundle) == ["2", "3"]
    assert run.bundle.verify() == []
    assert signing.find_key_file().exists()
