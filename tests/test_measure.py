"""Probes of real trainings, and what a study makes of them."""

import numpy as np
import pytest
from notebooks import write_notebook

import scalekit as sk
from scalekit.advice.advising import _fit
from scalekit.cli import main
from scalekit.measuring.study import MeasureError

TRAINS = (
    ("n_ranks: int = 1\nbatch_size: int = 32\nsteps: int = 100_000\nslow: bool = False", "parameters"),
    """
import time
import torch
import scalekit as sk

model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = torch.randn(256, 8), torch.randn(256, 1)
with sk.training(model, optimizer, data, batch_size=batch_size, max_steps=steps, log_every="0.25s") as job:
    for batch in job:
        job.step((job.model(batch.x) - batch.y).square().mean())
        time.sleep(0.02 if slow else 0.002)
""",
    "sk.record(done=True)",
)


@pytest.fixture
def notebook(place):
    return write_notebook(place / "train.ipynb", *TRAINS)


def test_probes_take_the_path_of_a_run_and_leave_when_they_have_told_enough(notebook, capsys):
    study = sk.measure("train.ipynb", batch=[32, 64], budget=25)
    assert study.batch_sizes == [32, 64]
    assert all("noisy" in warning for warning in study.warnings)
    for probe in study.good:
        assert probe.n_steps == 100_000 and len(probe.windows) >= 3 and probe.data is not None
        run = sk.Store("runs").open_run(probe.run_id)
        assert run.state == "preempted" and run.asked["tags"] == ["probe"]
        assert run.asked["study"] == study.study_id
    slowest = min(probe.rate for probe in study.find(1, 64))
    assert slowest > max(probe.rate for probe in study.find(1, 32))  # the pause is for a step
    assert main(["advise", "latest", "--deadline", "8h", "--prices", "2.5"]) == 0
    assert "1 rank, global batch " in capsys.readouterr().out
    steps = "32:40000,64:21000,256:8000"
    assert main(["advise", "latest", "--steps", steps]) == 0
    assert "Critical batch" in capsys.readouterr().out
    assert main(["advise", "latest", "--steps", steps, "--samples", "1000"]) == 2
    assert "Give one of them" in capsys.readouterr().err


def test_a_study_learns_from_a_run_and_says_how_far_it_was_off(notebook):
    study = sk.measure("train.ipynb", batch=[32], budget=5)
    run = sk.run("train.ipynb", steps=400)
    learnt, told = study.learn(run, prices=2.5)
    assert told.startswith("It took ") and "%" in told
    assert learnt.probes[-1].run_id == run.run_id and len(learnt.probes) == len(study.probes) + 1
    assert study.learn(run)[0].probes[-1] == learnt.learn(run)[0].probes[-1]  # twice is once


def test_a_short_training_tells_its_speed_by_its_end(notebook):
    study = sk.measure("train.ipynb", steps=20, budget=5)
    assert len(study.good[0].windows) == 1 and study.good[0].after is not None


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("1 / 0", "ZeroDivisionError"), ("x = 1", "is not one of sk.training")],
)
def test_a_notebook_that_fails_or_trains_otherwise_says_so(place, cell, reason):
    write_notebook(place / "odd.ipynb", cell)
    with pytest.raises(MeasureError, match=reason):
        sk.measure("odd.ipynb")


def test_what_there_was_no_time_for_is_named(notebook, capsys):
    study = sk.measure("train.ipynb", batch=[32, 64, 128], budget=1)
    assert [probe.batch_size for probe in study.good] == [32]
    assert study.warnings[-2:] == [
        f"1 rank, batch {batch}: not measured, as the 1 s for all probes were over; 2 s may do"
        for batch in (128, 64)
    ]
    assert "probe 1 of 3, at most 1.0 s left" in capsys.readouterr().out


def test_a_kind_that_fails_at_once_is_named_by_what_was_asked(place):
    fails = TRAINS[0], "assert batch_size < 64, 'too much'", *TRAINS[1:]
    write_notebook(place / "train.ipynb", *fails)
    study = sk.measure("train.ipynb", batch=[32, 64], budget=30)
    assert any(word.startswith("1 rank, batch 64: ") and "too much" in word for word in study.warnings)


def test_a_mistake_is_told_before_anything_starts(notebook):
    with pytest.raises(sk.ScaleKitError, match="has no parameter 'step'. Did you mean 'steps'"):
        sk.measure("train.ipynb", step=3)
    write_notebook(notebook.with_name("plain.ipynb"), "1")
    with pytest.raises(MeasureError, match="needs a parameter that is called one of n_ranks, world_size"):
        sk.measure("plain.ipynb", n_ranks=[1, 2])
    assert not (notebook.parent / "runs" / "studies").exists()


def test_who_stops_a_probe_stops_all_of_them(notebook, monkeypatch, capsys):
    monkeypatch.setattr("scalekit.measuring.running.execute_run", lambda order: {"state": "cancelled"})
    assert main(["measure", "train.ipynb", "--batch", "32,64"]) == 130
    assert capsys.readouterr().err.count("probe ") == 1 and not (notebook.parent / "runs/studies").exists()


def test_two_runs_differ_by_more_than_windows_of_one_run_do():
    rates = {1: (1000.0, 1005.0, 995.0), 2: (1900.0, 1905.0, 1895.0)}
    runs, windows = _fit(tuple(rates.items()), None), sk.fit_scaling(rates, mode="strong")
    wide, narrow = (np.std(np.log(fit.draw_rates(2))) for fit in (runs, windows))
    assert wide**2 == pytest.approx(narrow**2 + 0.03**2, rel=0.1)
