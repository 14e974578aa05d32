"""The advisor without a browser: its answers, its picture in a saved notebook, its threads, its run form."""

import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import nbformat
import pytest

import scalekit as sk
from scalekit.costs.prices import Price
from scalekit.measuring.study import MeasureError, Study, load_study, save_study
from scalekit.measuring.windows import Probe
from scalekit.notebook import read_source
from scalekit.panels.advisor import AdvisorPanel
from scalekit.panels.outlook import draw_outlook, list_series
from scalekit.panels.question import Assumed, NothingToRun, Question, ask, fill_in
from scalekit.panels.sliders import list_deadlines
from scalekit.store import Store
from scalekit.values import MASK

SPEEDS = {256: {1: 1000.0, 2: 1900.0, 4: 3500.0}, 512: {1: 1100.0, 2: 2150.0, 4: 4100.0}}
MACHINE = {"cores": 64, "gpus": ["H100"] * 8}
LAB = Price("lab", 6.88)
NODE = Assumed(devices_per_node=8)


def make_probe(n: int, rate: float, batch: int = 256, **more: Any) -> Probe:
    windows = (rate, rate * 1.005, rate * 0.995)
    shares = {"data": 0.05, "communication": 0.02 * n, "checkpoint": 0.0} | more
    return Probe(n, batch, windows, 102_400_000 // batch, 30.0, None, **shares)


def make_study(*probes: Probe, notebook: str | Path = "train.ipynb", **more: Any) -> Study:
    made = probes or tuple(
        make_probe(n, r, batch) for batch, known in SPEEDS.items() for n, r in known.items()
    )
    about = (
        "20260501-120000-000-ab12",
        str(notebook),
        more.pop("sha256", "0" * 64),
        more.pop("parameters", {}),
    )
    return Study(*about, None, MACHINE, "2026-05-01", tuple(made), **more)


def write_notebook(
    folder: Path,
    parameters: str = "lr: float = 0.1\nn_ranks: int = 1\nbatch_size: int = 64",
    trains: str = "print(lr, n_ranks, batch_size)",
) -> Path:
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(trains)]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "train.ipynb")
    return folder / "train.ipynb"


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AdvisorPanel]]:
    "Makes panels that are open; none of them leaves a thread"
    monkeypatch.chdir(tmp_path)
    made: list[AdvisorPanel] = []

    def make(*args: Any, **more: Any) -> AdvisorPanel:
        made.append(sk.advisor(*args, **more))
        made[-1].open()
        wait_for(lambda: made[-1].view.body)
        return made[-1]

    yield make
    for panel in made:
        panel.close(forget=True)
    wait_for(lambda: not [one for one in threading.enumerate() if one.name.startswith("scalekit-panel")])


# Answers


def test_the_panel_gives_the_advice_that_the_study_gives():
    study = make_study()
    answer = ask(study, Question(deadline=12 * 3600, budget=250, price=LAB), NODE)
    assert answer.sentence == study.advise("12h", 250, LAB, devices_per_node=8).sentence
    assert answer.chosen is answer.best


def test_a_tighter_deadline_changes_the_advice_and_not_the_chosen_plan():
    study = make_study()
    loose, tight = (ask(study, Question(2, 512, hours * 3600, price=LAB), NODE) for hours in (40, 5))
    assert (loose.best.n, tight.best.n) == (1, 8)
    assert loose.chosen.n == tight.chosen.n == 2
    assert "It keeps 5.0 h in 0% of likely cases" in tight.told


def test_machines_that_are_taken_away_cost_time_and_the_spot_price_counts():
    study, spot = make_study(), Price("spot", 6.88, spot_per_hour=2.0)
    calm, away = (ask(study, Question(4, 512, price=spot, per_hour=rate), NODE) for rate in (0.0, 0.5))
    assert away.chosen.seconds.median > 1.02 * calm.chosen.seconds.median
    assert away.chosen.money.median < 0.5 * calm.chosen.money.median
    assert not any("No spot price" in note for note in away.notes)
    assert any("a checkpoint takes 10 s" in note for note in away.notes)


def test_an_old_price_is_told_in_the_panel_and_warns_nobody_each_second(recwarn):
    old = replace(LAB, dated=date(2020, 1, 1))
    assert "days old (2020-01-01)" in " ".join(ask(make_study(), Question(price=old), NODE).notes)
    assert not recwarn.list


def test_the_limit_is_that_of_the_chosen_plan_and_not_of_the_advised_one():
    probes = [make_probe(1, 1000.0), make_probe(2, 1900.0), make_probe(4, 3000.0, data=0.38)]
    study = make_study(*probes)
    assert "the loader waits 38%" in ask(study, Question(4), NODE).limit
    assert "Limited by compute" in ask(study, Question(1), NODE).limit


# Where nobody can tell


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (
            make_study(Probe(1, 64, (), None, 0.0, None, error="CUDA out of memory")),
            "no probe with a batch size",
        ),
        (make_study(Probe(1, 64, (1000.0,), None, 30.0, None)), "Give samples="),
    ],
)
def test_a_study_that_can_tell_nothing_is_a_sentence_and_no_empty_plot(study, words, panels):
    panel = panels(study)
    assert words in panel.view.body["html"]
    assert "<svg" not in panel.view.body["html"]
    assert "<th>ranks</th>" in panel.view.body["html"]  # what was measured
    assert panel.view.head["state"] == "live"
    assert words in panel.picture()["text/plain"]


def test_what_was_never_measured_has_a_grey_bar_and_its_reason_once():
    answer = ask(make_study(), Question(price=LAB), NODE)
    throughput, _, hours, _ = list_series(answer)
    assert (list(throughput.bands), list(throughput.unseen), list(hours.bands)) == (
        [1, 2, 4, 8],
        [16],
        [1, 2, 4, 8],
    )
    assert [note.startswith("16 ranks: cannot tell. No run on two nodes") for note in answer.notes] == [True]


def test_a_workload_without_a_law_is_shown_as_measured_and_no_further():
    wild = make_study(*(make_probe(n, r) for n, r in ((1, 1000.0), (2, 300.0), (4, 2500.0), (8, 400.0))))
    answer = ask(wild, Question(price=LAB))
    assert list(list_series(answer)[2].bands) == [1, 2, 4, 8]
    assert any("follows no law" in note for note in answer.notes)


def test_without_a_price_there_are_words_where_money_would_be():
    drawn = draw_outlook(ask(make_study(), Question(), NODE))
    assert [one.count("<svg") for one in drawn] == [1, 1, 1, 0]
    assert "No price known for these GPUs, set it with" in drawn[3]


def test_a_limit_that_is_far_away_does_not_press_the_curve_to_the_floor():
    near, far = (
        draw_outlook(ask(make_study(), Question(deadline=h * 3600, price=LAB), NODE))[2] for h in (12, 2000)
    )
    assert 'class="limit"' in near
    assert 'class="limit"' not in far
    assert "limit 2000 is above" in far


# Static


def test_a_study_in_a_saved_notebook_is_a_table_a_sentence_and_four_images():
    shown = make_study()._repr_mimebundle_()
    assert sorted(shown) == ["text/html", "text/plain"]
    assert shown["text/html"].count("<img") == 3  # no price is known
    assert "Study(20260501-120000-000-ab12" in shown["text/plain"]
    assert "GPU, global batch" in shown["text/plain"]
    priced = sk.advisor(make_study(), prices=6.88)._repr_mimebundle_()
    assert priced["text/html"].count("<img") == 4
    assert "<script" not in priced["text/html"]


def test_a_terminal_needs_no_widgets():
    code = """if True:
        import sys
        from tests.test_advisor import make_study
        print(make_study()._repr_mimebundle_()["text/plain"])
        heavy = {"ipywidgets", "anywidget", "torch", "dask"}
        assert not heavy & {name.partition(".")[0] for name in sys.modules}
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "advised" in done.stdout


def test_a_saved_study_is_found_by_a_part_of_its_name_and_a_wrong_one_is_a_sentence(tmp_path):
    save_study(make_study(), Store(tmp_path / "runs"))
    assert sk.advisor("ab12", store=tmp_path / "runs").study == make_study()
    assert sk.advisor(store=tmp_path / "runs").study == make_study()
    with pytest.raises(MeasureError, match="no study 'ab13'"):
        sk.advisor("ab13", store=tmp_path / "runs")


# Threads


def test_of_a_slider_that_is_dragged_the_last_place_is_answered(panels):
    panel = panels(make_study(), prices=6.88, devices_per_node=8)
    for deadline in [*(value for _, value in list_deadlines()), math.inf, 6 * 3600.0]:
        panel._controls.deadline.value = deadline
    wait_for(lambda: "8 GPUs" in panel.answer.sentence)
    assert panel.answer.question.deadline == 6 * 3600
    wait_for(lambda: panel.answer.sentence[:40] in panel.view.body["html"])


def test_a_slider_returns_before_anything_is_computed(panels, monkeypatch):
    panel, began, go_on = panels(make_study()), threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        began.set()
        assert go_on.wait(20)
        return ask(*args)

    monkeypatch.setattr("scalekit.panels.advisor.ask", slow)
    panel._controls.ranks.value = 8
    assert began.wait(20)
    panel._controls.ranks.value = 2  # while the first is still computed
    go_on.set()
    wait_for(lambda: panel.answer.chosen.n == 2)


def test_a_price_of_whole_machines_offers_other_ranks_and_the_advice_is_taken_with_a_press(panels):
    panel = panels(make_study(), prices=6.88, n_ranks=None)
    panel._controls.price.value = "aws p5.48xlarge"
    wait_for(lambda: panel.answer.chosen.price.name == "aws p5.48xlarge")
    wait_for(lambda: list(panel._controls.ranks.options) == panel.answer.counts)
    panel._controls.ranks.value = 1
    wait_for(lambda: panel.answer.chosen.n == 1 and not panel._take_advice.disabled)
    panel._take_advice.click()
    wait_for(lambda: panel.answer.chosen is panel.answer.best)
    assert "7 GPUs paid and not used" not in panel.answer.sentence


# The run form


def test_chosen_numbers_go_into_the_notebooks_own_parameters_and_secrets_stay_out(tmp_path):
    notebook = write_notebook(
        tmp_path, "world_size: int = 1\nglobal_batch: int = 8\ntoken: str = ''\nlr: float = 1.0"
    )
    study = make_study(notebook=notebook, parameters={"lr": 0.5, "token": MASK, "world_size": 2})
    assert fill_in(study, 4, 512) == (notebook, {"lr": 0.5, "world_size": 4, "global_batch": 512})


def test_a_plan_that_no_form_can_take_says_what_is_missing(tmp_path):
    notebook = write_notebook(tmp_path, "lr: float = 1.0")
    assert fill_in(make_study(notebook=notebook), 1, 64)[1] == {}
    with pytest.raises(NothingToRun, match="no parameter says how many ranks. Call one n_ranks"):
        fill_in(make_study(notebook=notebook), 2, 64)
    with pytest.raises(NothingToRun, match="fit is a function, and a run form needs a notebook"):
        fill_in(make_study(notebook="fit", sha256=""), 2, 64)
    with pytest.raises(NothingToRun, match=r"is not there any more. Use sk.form\(PATH\) with 2 ranks"):
        fill_in(make_study(notebook=tmp_path / "gone.ipynb"), 2, 64)


def test_run_it_starts_the_chosen_plan_and_a_changed_notebook_is_told(
    panels, warm_server, monkeypatch, tmp_path
):
    for name, value in warm_server.items():
        monkeypatch.setenv(name, value)
    notebook = write_notebook(tmp_path)
    study = make_study(notebook=notebook, sha256=read_source(notebook)[1], parameters={"lr": 0.5})
    panel = panels(study, "12h", 250, 6.88, devices_per_node=8, store=tmp_path / "runs")
    panel._controls.ranks.value = 2
    panel._go.click()
    wait_for(lambda: panel.form and panel.form.followed.run and panel.form.followed.run.progress.is_over)
    bundle = panel.form.followed.run.bundle
    assert (bundle.state, bundle.asked["parameters"]) == (
        "succeeded",
        {"lr": 0.5, "n_ranks": 2, "batch_size": 512},
    )
    assert "has changed" not in panel.view.body["html"]
    notebook.write_text(notebook.read_text() + "\n")
    panel._fill.click()
    wait_for(lambda: "train.ipynb has changed since it was measured" in panel.view.body["html"])


TRAINS = """
import torch
import scalekit as sk

torch.set_num_threads(1)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
data = torch.randn(256, 8), torch.randn(256, 1)
with sk.training(model, optimizer, data, batch_size=batch_size, max_steps=400) as job:
    for batch in job:
        job.step((job.model(batch.x) - batch.y).square().mean())
"""


def test_a_run_from_the_panel_is_compared_with_what_was_said_and_kept_in_the_study(
    panels, warm_server, monkeypatch, tmp_path
):
    for name, value in warm_server.items():
        monkeypatch.setenv(name, value)
    notebook = write_notebook(tmp_path, trains=TRAINS)
    folder = Store(tmp_path / "runs")
    study = make_study(make_probe(1, 1000.0, 64), notebook=notebook, sha256=read_source(notebook)[1])
    saved = replace(study, path=save_study(study, folder))
    panel = panels(saved, prices=6.88, store=folder.folder)
    panel._go.click()
    wait_for(lambda: "<b>The run: </b>It took " in panel.view.body["html"])
    assert "outside the interval: measure again" in panel.view.body["html"]  # 30 s were said for its start
    run_id = panel.form.followed.run.bundle.run_id
    assert [probe.run_id for probe in load_study("latest", folder).probes] == ["", run_id]
    assert "It took " in panel._repr_mimebundle_()["text/plain"]


def test_a_run_that_trains_nothing_teaches_nothing_and_says_so(panels, warm_server, monkeypatch, tmp_path):
    for name, value in warm_server.items():
        monkeypatch.setenv(name, value)
    notebook = write_notebook(tmp_path)
    study = make_study(make_probe(1, 1000.0, 64), notebook=notebook, sha256=read_source(notebook)[1])
    panel = panels(study, store=tmp_path / "runs")
    panel._go.click()
    wait_for(lambda: "has told no speed of a training to learn from" in panel.view.body["html"])
    assert panel.study == study
