"""Figures of how a team scales: what they count, and that what is not known is never 0."""

import json
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from notebooks import write_notebook

import scalekit as sk
from scalekit.cli import main
from scalekit.kpis.figures import FIGURES, measure
from scalekit.kpis.page import draw_kpis
from scalekit.store import Store

MONDAY = datetime(2026, 5, 4, tzinfo=UTC)


def at(hours):
    "A time of a row, so many hours after the first Monday"
    return f"{MONDAY + timedelta(hours=hours):%Y-%m-%dT%H:%M:%S.%fZ}"


def make_row(number, state, begin, end, **more):
    row = {"run_id": f"{number:04d}", "state": state, "notebook": "a.ipynb", "notebook_sha256": f"v{number}"}
    row |= {"created": at(begin), "started": at(begin), "ended": at(end), "seconds": (end - begin) * 3600.0}
    return (
        row | {"parameters": {}, "metrics": {}, "tags": [], "system": {}, "cost": None, "attempt": 1} | more
    )


def find(rows, name, weeks=2):
    "Value, number of observations, and weeks of one figure"
    found = measure(rows, MONDAY, MONDAY + timedelta(weeks=weeks, seconds=-1))
    (kpi,) = (kpi for kpi in found.kpis if kpi.figure.name == name)
    return kpi.value, kpi.n, kpi.weeks


def test_where_nothing_is_known_nothing_is_zero():
    bare = [{"run_id": "1", "state": "running", "created": None}]
    for rows in ([], bare):
        found = measure(rows, MONDAY, MONDAY + timedelta(days=9))
        assert {kpi.value for kpi in found.kpis} == {None}
        assert all(set(kpi.weeks) == {None} and len(kpi.weeks) == 2 for kpi in found.kpis)
    rows = [make_row(1, "succeeded", 0, 1, attempt=None)]
    unknown = {
        kpi.figure.name for kpi in measure(rows, MONDAY, MONDAY + timedelta(days=6)).kpis if kpi.value is None
    }
    assert unknown == {
        "recovery",
        "retries",
        "cost_per_run",
        "cost_per_accepted",
        "gpu_hours",
        "gpu_use",
        "data_age",
    }


def test_a_result_counts_from_the_save_of_its_version_and_only_once():
    saved = at(-2)
    rows = [
        make_row(1, "failed", 0, 1, notebook_sha256="a", notebook_changed=saved),
        make_row(2, "succeeded", 2, 3, notebook_sha256="a", notebook_changed=saved),
        make_row(3, "succeeded", 4, 9, notebook_sha256="a", notebook_changed=saved),
        make_row(4, "succeeded", 200, 201, notebook_sha256="b"),  # when it was saved is not known
        make_row(5, "failed", 0, 50, notebook_sha256="c"),  # no result yet
        make_row(
            6, "succeeded", 210, 211, notebook_sha256="d", notebook_changed=at(300)
        ),  # saved again meanwhile
    ]
    assert find(rows, "change_to_result") == (1.0, 3, (5.0, 1.0))


def test_what_was_stopped_by_somebody_did_not_fail():
    states = ["succeeded"] * 3 + ["failed", "cancelled", "pruned"]
    rows = [make_row(number, state, 0, 1) for number, state in enumerate(states)]
    rows.append(make_row(9, "preempted", 0, 1, ended=None))
    assert find(rows, "failure_rate") == (0.25, 4, (0.25, None))


def test_a_streak_of_failures_recovers_once_also_by_a_mended_notebook():
    rows = [
        make_row(1, "failed", 0, 1, notebook_sha256="a"),
        make_row(2, "failed", 1, 2, notebook_sha256="a"),
        make_row(3, "succeeded", 200, 201, notebook_sha256="mended"),
        make_row(4, "succeeded", 210, 211),
        make_row(5, "failed", 0, 5, parameters={"lr": 1}),  # other work
    ]
    assert find(rows, "recovery") == (200.0, 1, (None, 200.0))
    found = measure(rows, MONDAY, MONDAY + timedelta(days=20))
    assert found.notes[0] == "Work that failed and has not succeeded since: 1."


def test_all_runs_are_paid_for_an_accepted_model():
    rows = [make_row(number, "failed", 0, 1, cost=3.0) for number in range(4)]
    rows += [
        make_row(8, "succeeded", 0, 1, cost=1.0, tags=["champion", "accepted"]),
        make_row(9, "succeeded", 0, 1),
    ]
    assert find(rows, "cost_per_accepted")[0] == 13.0
    assert find(rows, "cost_per_run")[0] == 13 / 5
    assert find(rows[:4], "cost_per_accepted")[0] is None  # none was accepted
    free = [make_row(1, "succeeded", 0, 1, tags=["accepted"])]
    assert find(free, "cost_per_accepted")[0] is None  # no price
    assert (
        "Runs without a price, whose cost is in no figure: 1 of 6."
        in measure(rows, MONDAY, MONDAY + timedelta(days=6)).notes
    )


def test_gpu_hours_are_those_of_runs_with_samples():
    rows = [
        make_row(1, "succeeded", 0, 2, system={"cpu": 3.0, "gpu0/utilization": 0.5, "gpu1/utilization": 0.0}),
        make_row(2, "failed", 0, 4, system={"gpu0/utilization": 1.0, "gpu0/memory": 9}),
        make_row(3, "succeeded", 0, 100, system={"cpu": 1.0}),
    ]
    assert find(rows, "gpu_hours")[:2] == (8.0, 2)
    assert find(rows, "gpu_use")[0] == (0.5 * 2 + 4) / 8


def test_the_age_of_data_is_what_the_notebook_says():
    rows = [
        make_row(1, "succeeded", 48, 49, metrics={"data_time": "2026-05-04"}),
        make_row(2, "succeeded", 48, 49, metrics={"data_time": "2026-05-05T12:00:00+02:00"}),
        make_row(3, "succeeded", 48, 49, metrics={"data_time": "yesterday"}),
        make_row(4, "succeeded", 48, 49, metrics={"data_time": 3}),
    ]
    assert find(rows, "data_age") == ((48 + 14) / 2, 2, (31.0, None))


def test_what_lies_before_the_span_counts_as_history_only():
    rows = [make_row(1, "failed", -100, -99), make_row(2, "succeeded", 1, 2, notebook_sha256="v1")]
    assert find(rows, "failure_rate") == (0.0, 1, (0.0, None))
    assert find(rows, "recovery")[0] == 101.0
    assert find(rows, "change_to_result")[0] == 102.0


# From Python, from the command line, as a page


class Page(HTMLParser):
    "Elements and texts of a page"

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "<b>team" / "runs")
    for state in ("failed", "succeeded"):
        bundle = store.create_run(
            {"notebook": "<img src=x onerror=alert(1)>.ipynb", "notebook_sha256": "a", "attempt": 1}
        )
        bundle.set_state("running")
        bundle.set_state(state)
        bundle.seal()
        store.index(bundle)
    return store


def test_figures_come_as_a_table_and_as_plain_data(store):
    found = sk.kpi("30d", store=store.folder)
    assert found.table["runs"].tolist() == [2.0] and found.table["cost_per_run"].isna().all()
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["kpis"]["failure_rate"]["value"] == 0.5 and plain["kpis"]["cost_per_run"]["value"] is None
    assert len(plain["weeks"]) == 1  # there is nothing to see before the first run


def test_the_page_says_what_each_figure_means_and_runs_nothing(store, tmp_path, monkeypatch):
    monkeypatch.chdir(store.folder.parent)
    sk.kpi(html=tmp_path / "kpi.html", store=store.folder)
    text = (tmp_path / "kpi.html").read_text()
    page = Page(text)
    said = "".join(page.texts)
    assert all(figure.definition in said and figure.title in said for figure in FIGURES)
    assert "not known" in said and "How <b>team scales" in said
    assert not {"script", "img", "iframe", "link", "form", "a"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert "default-src &#x27;none&#x27;; style-src" in text and len(text) < 100_000


def test_a_year_fits_on_the_page():
    rows = [
        make_row(n, "failed" if n % 7 == 0 else "succeeded", n, n + 1, cost=n % 5) for n in range(0, 8700, 3)
    ]
    found = measure(rows, MONDAY, MONDAY + timedelta(days=364))
    assert len(found.weeks) == 53
    assert len(draw_kpis(found, "A year")) < 300_000


def test_the_command_shows_figures(store, tmp_path, capsys):
    words = ["kpi", "--store", str(store.folder)]
    assert main([*words, "--html", str(tmp_path / "kpi.html")]) == 0
    shown = capsys.readouterr().out
    assert "Failure rate" in shown and "50 %" in shown and "not known" in shown and "page: " in shown
    assert main([*words, "--json", "--since", "2026-01-01"]) == 0
    assert json.loads(capsys.readouterr().out)["kpis"]["runs"]["value"] == 2
    for wrong in (["--since", "last week"], ["--html", str(tmp_path / "no" / "kpi.html")]):
        assert main([*words, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_run_says_when_its_notebook_was_saved(place):
    import os

    path = write_notebook(place / "a.ipynb", "1")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    row = sk.run("a.ipynb").row
    assert (row["notebook_changed"], row["attempt"]) == ("2023-11-14T22:13:20.000000Z", 1)
    assert row["notebook_sha256"] == sk.runs()["notebook_sha256"][0]
