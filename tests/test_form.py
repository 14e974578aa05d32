"""The run form without a browser: its texts, its threads, and the process that it starts."""

import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat
import pytest
from processes import wait_until as wait_for

import scalekit as sk
from scalekit.config import load_settings
from scalekit.core import ScaleKitError
from scalekit.panels.apart import Apart, start_run
from scalekit.panels.fields import check_text, make_fields, read_texts
from scalekit.panels.following import RunFollower, find_earlier_times
from scalekit.panels.form import RunForm
from scalekit.panels.orders import make_spec
from scalekit.panels.progress import Progress, estimate
from scalekit.signature import read_signature
from scalekit.store import Store
from scalekit.typed.check import BadParameter, UnknownParameter

PARAMETERS = """from enum import Enum
from typing import Annotated, Any, Literal
from pydantic import Field, SecretStr
class Color(Enum):
    RED = 1
    BLUE = 2
lr: Annotated[float, Field(gt=0, le=1)] = 0.1  # step
steps: int = 2
name: str = "base"
color: Color = Color.RED
layers: list[int] = [8]
table: dict[str, int] = {"a": 1}
token: SecretStr = SecretStr("")
smoke: bool = False"""
WORK = """import time
import scalekit as sk
for step in range(1 if smoke else steps):
    time.sleep(0.1)
    print("step", step)
    sk.log(loss=1 / (step + 1), step=step)
assert name != "bad", "the name is bad"
"""


def write_notebook(folder: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(
        cells=[tagged, *map(nbformat.v4.new_code_cell, cells)], metadata=kernel
    )
    nbformat.write(notebook, folder / "train.ipynb")
    return folder / "train.ipynb"


def panel_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("scalekit-panel")]


@pytest.fixture
def home(tmp_path: Path, warm_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    "A folder to work in, with warm kernels at hand"
    for name, value in warm_server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forms() -> Iterator[Callable[..., RunForm]]:
    "Makes forms that are open; none of them leaves a thread"
    made: list[RunForm] = []

    def make(*args: Any, **values: Any) -> RunForm:
        made.append(sk.form(*args, **values))
        made[-1].open()
        return made[-1]

    yield make
    for form in made:
        form.close(forget=True)
    wait_for(lambda: not panel_threads())


def press(form: RunForm) -> None:
    "Press Run; returns when all is done that the press asked for"
    assert form._order is not None
    form._order.run.click()
    wait_for(lambda: not form.is_busy("run"))


def follow(form: RunForm) -> Progress:
    "Wait until the run of a form is over"
    wait_for(lambda: form.followed.run is not None and form.followed.run.progress.is_over)
    assert form.followed.run is not None
    return form.followed.run.progress


# Texts


SIGNATURE = read_signature(
    {
        "cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": PARAMETERS}],
        "metadata": {},
    },
    "train.ipynb",
)


def test_untouched_inputs_give_the_run_nothing_so_the_notebooks_defaults_count():
    texts = {field.name: field.start for field in make_fields(SIGNATURE)}
    assert read_texts(SIGNATURE, texts) == ({}, {})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 0.001), ("steps", "1_000", 1000), ("name", "", ""), ("name", "5", "5"),
        ("layers", "[1, 2]", [1, 2]), ("table", "{'b': 2}", {"b": 2}), ("smoke", "True", True),
    ],
)  # fmt: skip
def test_a_text_becomes_the_value_that_a_run_would_take(name, text, value):
    assert read_texts(SIGNATURE, {name: text}) == ({name: value}, {})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("lr", "2", "lr must be <= 1, got 2"), ("steps", "2.5", "steps must be int, got '2.5'"),
        ("layers", "[1, 'x']", "layers[1] must be int, got 'x'"),
        ("table", "[1]", "table must be dict[str, int]"),
        ("color", "GREEN", "GREEN"), ("token", "env:NO_SUCH", "NO_SUCH, which is not set"),
    ],
)  # fmt: skip
def test_a_wrong_text_is_told_in_one_sentence_without_words_of_a_terminal(name, text, words):
    said = check_text(SIGNATURE, name, text)
    assert words in said
    assert "-p " not in said
    assert "\n" not in said
    assert "train.ipynb" not in said


def test_choices_and_switches_need_no_typing():
    kinds = {field.name: (field.kind, field.choices) for field in make_fields(SIGNATURE)}
    assert kinds["color"] == ("choice", ("RED", "BLUE"))
    assert kinds["smoke"] == ("check", ())
    assert kinds["token"] == ("secret", ())


def test_a_parameter_without_default_must_be_given():
    source = "lr: float\nkind: Literal['a', 'b']\nfrom typing import Literal"
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["parameters"]},
        "source": f"from typing import Literal\n{source}",
    }
    signature = read_signature({"cells": [cell], "metadata": {}}, "a.ipynb")
    fields = {field.name: field for field in make_fields(signature)}
    assert (fields["kind"].choices[0], fields["lr"].placeholder) == ("choose …", "required")
    values, mistakes = read_texts(signature, {"kind": "choose …", "lr": ""})
    assert (values, list(mistakes)) == ({}, ["lr", "kind"])


def test_a_job_keeps_no_secret(tmp_path):
    with pytest.raises(ScaleKitError, match="a job keeps none"):
        make_spec(SIGNATURE, tmp_path / "train.ipynb", {"token": "hunter2"})
    os.environ["FORM_TOKEN"] = "hunter2"
    try:
        spec = make_spec(SIGNATURE, tmp_path / "train.ipynb", {"token": "env:FORM_TOKEN"})
    finally:
        del os.environ["FORM_TOKEN"]
    assert spec.parameters == {"token": "env:FORM_TOKEN"}


# Progress


def test_a_million_logged_points_stay_a_small_curve():
    progress = Progress()
    for step in range(50_000):
        progress.take([{"event": "log", "step": step, "values": {"loss": 1 / (step + 1)}}])
    points = progress.curves["loss"]
    assert len(points) <= 2000
    assert (points[0][0], points[-1][0]) == (0.0, 49_999.0)


def test_cells_that_were_put_back_or_run_twice_count_once():
    progress = Progress(cells=(0, 1))
    cell = {"event": "cell", "index": 0}
    progress.take([cell | {"status": "restored"}, cell | {"status": "running"}])
    assert (progress.n_done, progress.position) == (0, 1)
    progress.take([cell | {"status": "completed", "seconds": 2.0}])
    assert (progress.n_done, progress.seconds) == (1, {0: 2.0})


def test_the_end_is_guessed_from_the_cells_that_are_left():
    now = datetime(2026, 5, 1, tzinfo=UTC)
    progress = Progress(cells=(0, 1, 2), state="running", started=now - timedelta(seconds=9), running=1,
                        since=now - timedelta(seconds=4), seconds={0: 5.0})  # fmt: skip
    guess = estimate(progress, now, [{0: 5.0, 1: 10.0, 2: 1.0}] * 3)
    assert (guess.seconds, guess.source) == (7.0, "by 3 earlier runs")
    assert estimate(progress, now).source == "by the share of cells"


# Processes


def test_a_run_in_a_process_of_its_own_is_followed_to_its_end_and_timed_for_the_next(home):
    notebook = write_notebook(home, WORK)
    settings = load_settings()
    store = Store(settings.store, settings.folder)
    started = start_run(notebook, {"steps": 3}, settings, store)
    follower = RunFollower(started.bundle)

    def is_over() -> bool:
        follower.look()
        started.check()
        return follower.progress.is_over and started.process.poll() is not None

    wait_for(is_over)
    assert (follower.progress.state, follower.progress.metrics["loss"]) == ("succeeded", 1 / 3)
    assert follower.log.splitlines() == ["step 0", "step 1", "step 2"]
    assert not started.process.log.exists()
    times = find_earlier_times(store, started.bundle)
    assert [set(one) for one in times] == [set(follower.progress.cells)]


def test_a_process_that_dies_ends_its_run_with_its_last_words(home):
    notebook = write_notebook(home, "import time; time.sleep(600)")
    settings = load_settings()
    started = start_run(notebook, {}, settings, Store(settings.store, settings.folder))
    wait_for(lambda: started.bundle.state == "running")
    os.kill(started.process.pid, 9)
    wait_for(lambda: started.process.poll() is not None)
    started.check()
    assert started.bundle.state == "failed"
    assert "its process has ended: exit code -9" in started.bundle.summary()["error"]


def test_what_is_started_apart_knows_nothing_of_the_kernel_around_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEKIT_BUNDLE", str(tmp_path))
    path = str(tmp_path / "said")
    ask = f"from scalekit.context import current_run; open({path!r}, 'w').write(str(current_run()))"
    apart = Apart(exec, ask, log=tmp_path / "log")
    wait_for(lambda: apart.poll() is not None)
    assert (tmp_path / "said").read_text() == "CurrentRun(None)", apart.last_words()


# The form


def test_a_press_runs_what_stands_in_the_inputs_and_shows_the_result(home, forms):
    form = forms(write_notebook(home, WORK), steps=3)
    form._inputs["lr"].input.value = "0.5"
    form._inputs["token"].input.value = "hunter2"
    press(form)
    progress = follow(form)
    assert (progress.state, form.followed.run.bundle.asked["parameters"]) == (
        "succeeded", {"lr": 0.5, "steps": 3, "token": "**********"},
    )  # fmt: skip
    wait_for(lambda: "executed notebook" in form.body["html"])
    assert form._inputs["token"].text == ""
    assert "hunter2" not in str([form.body, form.picture(), progress])
    picture = form.picture()
    assert "succeeded" in picture["text/plain"]
    assert "data:image/svg+xml" in picture["text/html"]


def test_a_mistake_starts_nothing_and_says_so_below_its_input(home, forms):
    form = forms(write_notebook(home, WORK))
    form._inputs["lr"].input.value = "-1"
    wait_for(lambda: "lr must be &gt; 0" in form._inputs["lr"].below.value)
    press(form)
    assert form.followed.run is None
    assert not form._order.run.disabled
    assert not list((home / "runs").glob("2*"))


def test_the_failing_cell_is_told_in_one_line_with_its_trace_folded(home, forms):
    form = forms(write_notebook(home, WORK), name="bad")
    press(form)
    assert follow(form).state == "failed"
    wait_for(lambda: "AssertionError: the name is bad" in form.body["html"])
    assert "<summary>details</summary>" in form.body["html"]
    assert "cell 2: AssertionError: the name is bad" in form.picture()["text/plain"]


def test_smoke_runs_the_notebooks_smoke_mode_whatever_stands_in_the_form(home, forms):
    form = forms(write_notebook(home, WORK), steps=500)
    form._order.smoke.click()
    assert follow(form).state == "succeeded"
    assert form.followed.run.bundle.asked["parameters"]["smoke"] is True


def test_without_a_smoke_mode_the_button_is_off_and_says_how_to_have_one(home, forms):
    form = forms(write_notebook(home, "1", parameters="lr: float = 0.1"))
    assert form._order.smoke.disabled
    assert "smoke: bool = False" in form._order.smoke.tooltip


def test_a_form_made_again_finds_the_run_and_cancels_it(home, forms):
    notebook = write_notebook(home, WORK)
    first = forms(notebook, steps=1000)
    press(first)
    wait_for(lambda: first.followed.run.progress.state == "running")
    first.close(forget=True)
    again = forms(notebook)
    wait_for(lambda: again.followed.run is not None and again._order.run.disabled)
    assert again.followed.run.bundle.run_id == first.followed.run.bundle.run_id
    again.handle({"do": "cancel"})
    assert follow(again).state == "cancelled"
    wait_for(lambda: not again._order.run.disabled)
    wait_for(lambda: first.followed._started.process.poll() is not None)


def test_two_presses_start_one_run(home, forms):
    form = forms(write_notebook(home, WORK))
    form._press(smoke=False)
    form._press(smoke=False)
    follow(form)
    wait_for(lambda: not form.is_busy("run"))
    assert len(list((home / "runs").glob("2*"))) == 1


def test_a_schedule_shows_its_next_times_or_what_is_wrong_with_it(home, forms):
    form = forms(write_notebook(home, WORK))
    order = form._order
    order.when.value = "schedule"
    order.time.value, order.zone.value = "0 2 * * *", "Europe/Berlin"
    wait_for(lambda: order.next.value.count("02:00 CE") == 3)
    order.zone.value = "Europe/Berlln"
    wait_for(lambda: "Europe/Berlin" in order.next.value and "role" in order.next.value)
    assert order.run.description == "Schedule"


def test_a_wrong_value_to_begin_with_is_refused_before_there_is_a_form(home):
    notebook = write_notebook(home, WORK)
    with pytest.raises(BadParameter, match="lr must be <= 1"):
        sk.form(notebook, lr=2.0)
    with pytest.raises(UnknownParameter, match="Did you mean 'steps'"):
        sk.form(notebook, step=2)
    with pytest.raises(ScaleKitError, match="no profile 'gpuu'"):
        sk.form(notebook, profile="gpuu")


def test_handlers_do_nothing_that_takes_time(home, forms, monkeypatch):
    form = forms(write_notebook(home, WORK))
    done: list[str] = []
    monkeypatch.setattr(form, "work", lambda name, *args, **words: done.append(name))
    form._inputs["lr"].input.value = "0.7"
    form._order.when.value = "job"
    form._order.run.click()
    form.handle({"do": "cancel"})
    assert done == ["check", "next", "run", "cancel"]
