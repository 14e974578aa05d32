"""The page of a sweep: whatever rows it gets, it is whole, quiet and safe."""

import base64
import csv
import hashlib
import io
import math
import random
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote

import pytest

from scalekit.bundle import create_bundle
from scalekit.charts import rank_trials
from scalekit.events import StoreError, dump_json
from scalekit.page import write_sweep_page
from scalekit.ranking import BadGoal, find_goal, order_rows
from scalekit.store import Store
from scalekit.timeline import lay_out

GOAL = ("maximize", "accuracy")
HOSTILE = (
    "\"><img src=x onerror=alert(1)><script>alert(2)</script></style></title>'`\x00\x1b[31m\ud800\u202e&"
)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def make_row(number, state="succeeded", parameters=None, metrics=None, **more):
    "A row as `Store.list_runs` gives it; each trial follows on the one before"
    start = NOON + timedelta(seconds=10 * number)
    times = {
        "started": f"{start:%FT%T.%fZ}",
        "ended": f"{start + timedelta(seconds=9):%FT%T.%fZ}",
        "seconds": 9.0,
    }
    return {
        "run_id": f"20260501-120000-{number:03d}-aaaaaa", "state": state, "notebook": "train.ipynb",
        "parameters": parameters or {}, "metrics": metrics or {}, "cost": None, "error": None, "path": None,
        **times, **more,
    }  # fmt: skip


VOID = ("meta", "path", "circle", "rect", "line")


class Reader(HTMLParser):
    "What a browser would find in the page"

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.odd = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        if name not in VOID and (not self.open or self.open.pop() != name):
            self.odd.append(name)

    def handle_data(self, text):
        self.texts.append(text)

    def find(self, name, **wanted):
        "Attributes of each element that has the wanted ones"
        return [found for kind, found in self.elements if kind == name and wanted.items() <= found.items()]


@pytest.fixture
def read(tmp_path):
    "Function that writes a page and reads it as a browser would"

    def read(rows, goal=GOAL, about=None, title="Sweep"):
        page = write_sweep_page(tmp_path / "sweep.html", title, rows, goal, about)
        reader = Reader(page.read_text(encoding="utf-8"))
        assert (reader.odd, reader.open) == ([], []), "elements are not closed in order"
        return reader

    return read


def headings(reader):
    titles = ["Best trial", "Which setting is the best?", "Pareto set", "by parameter", "Learning curves"]
    titles += ["Trials", "Pruned", "What did not succeed", "Timeline"]
    return [title for title in titles if any(text.endswith(title) for text in reader.texts)]


def test_hostile_text_stays_text(read):
    values = {HOSTILE: HOSTILE, "kind": "plain"}
    metrics = {HOSTILE: 1, "note": HOSTILE}
    names = {"run_id": HOSTILE, "notebook": HOSTILE}
    rows = [
        make_row(number, "succeeded", values | {HOSTILE: HOSTILE * number}, metrics, **names)
        for number in range(3)
    ]
    rows += [make_row(7, HOSTILE, started=None, ended=None), make_row(8, "failed", values, error=HOSTILE)]
    reader = read(rows, ("maximize", HOSTILE), {HOSTILE: HOSTILE}, title=HOSTILE)
    assert not reader.find("img")
    assert [len(reader.find(name)) for name in ("script", "style", "h1", "body")] == [1, 1, 1, 1]
    assert not [name for _, found in reader.elements for name in found if name.startswith("on")]
    assert not [text for text in reader.texts if re.search("[\x00\x1b\u202e]", text)]
    assert any("<script>alert(2)</script>" in text for text in reader.texts), "it is shown, not hidden"


def test_the_page_asks_for_nothing_from_anywhere(read, tmp_path):
    bundle = create_bundle(tmp_path / "javascript:alert(1)", {})
    bundle.notebook.write_text("{}")
    reader = read([make_row(1, path=str(bundle.path), metrics={"accuracy": 1})])
    links = [found["href"] for _, found in reader.elements if "href" in found]
    assert "javascript%3Aalert%281%29/notebook.ipynb" in links
    assert all(link.startswith(("#t", "javascript%3A", "data:text/csv;")) for link in links)
    assert not [found for _, found in reader.elements if {"src", "srcset", "action", "data"} & found.keys()]
    (policy,) = reader.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none';")


def test_the_script_is_the_one_that_the_policy_allows(read):
    reader = read([make_row(1)])
    (policy,) = reader.find("meta", **{"http-equiv": "Content-Security-Policy"})
    script = next(text for text in reader.texts if "addEventListener" in text)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy["content"]


NO_NUMBERS = [math.nan, math.inf, -math.inf, None, "high", True, [1], {"$tuple": [1]}, 10**400, 1e308, -1e308]
MIXED = [None, 1, 1.5, "a", "", True, [1, [2]], {"a": 1}, {"$tuple": 3}, {"$enum": "K.A"}, math.nan, 10**400]
EXTREMES = [(5e-324, 5e-324), (1e299, 1), (-1e299, -1e299)]


@pytest.mark.parametrize("goal", [None, GOAL, ("minimize", "acuracy")])
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [make_row(1)],
        [make_row(1, metrics={"accuracy": 0.5})],
        [make_row(1, "queued", started=None, ended=None, seconds=None)],
        [make_row(1, "failed", error=None), make_row(2, "failed", error="disk full")],
        [make_row(number, metrics={"accuracy": value}) for number, value in enumerate(NO_NUMBERS)],
        [
            make_row(number, "succeeded", {"x": value}, {"accuracy": number})
            for number, value in enumerate(MIXED)
        ],
        [make_row(1, parameters={"x": 1}), make_row(2), make_row(3) | {"parameters": None, "metrics": None}],
        [make_row(number, "succeeded", {"x": x}, {"accuracy": y}) for number, (x, y) in enumerate(EXTREMES)],
        [{"run_id": None, "state": None, "parameters": None, "metrics": None}],
    ],
)
def test_any_rows_give_a_whole_page(read, rows, goal):
    reader = read(rows, goal)
    assert len([found for found in reader.find("tr") if found.get("id", "").startswith("t")]) == len(rows)
    drawn = [found for name, found in reader.elements if name in ("path", "circle", "rect", "line", "text")]
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(map(str, drawn)))


def test_a_parameter_of_a_megabyte_stays_in_its_bundle(read, tmp_path):
    read(
        [
            make_row(number, parameters={"text": f"{number}" * 10**6}, metrics={"accuracy": number})
            for number in range(3)
        ]
    )
    assert (tmp_path / "sweep.html").stat().st_size < 50_000


def test_a_sweep_without_success_says_so_and_shows_why(read):
    reader = read(
        [make_row(number, "failed", {"lr": number}, error="ValueError: no data") for number in range(40)]
    )
    assert headings(reader) == ["Trials", "What did not succeed", "Timeline"]
    assert "No trial has succeeded yet." in reader.texts
    assert reader.texts.count("ValueError: no data") == 1
    assert any(text.endswith("and 28 more") for text in reader.texts)


def test_a_misspelt_goal_is_led_to_the_metric_there_is(read):
    reader = read([make_row(1, metrics={"accuracy": 0.5})], ("maximize", "acuracy"))
    assert (
        "No trial told of the metric 'acuracy'. Did you mean 'accuracy'? There are: accuracy." in reader.texts
    )


def test_a_wrong_direction_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        BadGoal, match=r'got \(\'max\', \'accuracy\'\). For example: \("maximize", "accuracy"\)'
    ):
        write_sweep_page(tmp_path / "sweep.html", "Sweep", [], ("max", "accuracy"))
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="the page .* can't be written: "):
        write_sweep_page(tmp_path / "gone" / "sweep.html", "Sweep", [])


def test_the_goal_is_guessed_where_nobody_said_it(read):
    rows = [make_row(number, metrics={"val_loss": 1 / number, "n_weights": 5}) for number in (1, 2)]
    assert find_goal(rows) == ("minimize", "val_loss")
    assert "best val_loss" in read(rows, None).texts


def test_failures_are_last_and_do_not_win(read):
    rows = [
        make_row(1, "failed", metrics={"accuracy": 1.0}),
        make_row(2, metrics={"accuracy": 0.5}),
        make_row(3, "running"),
    ]
    assert [row["run_id"][16:19] for row in order_rows(rows, GOAL)] == ["002", "003", "001"]
    reader = read(rows)
    assert [found["id"] for found in reader.find("tr", **{"class": "best"})] == ["t1"]
    assert "median 0.5" in reader.texts


def test_every_mark_leads_to_a_row(read):
    states = ["failed", *["succeeded"] * 4] * 4
    rows = [
        make_row(number, state, {"lr": 10.0**-number, "kind": "ab"[number % 2]}, {"accuracy": number / 20})
        for number, state in enumerate(states)
    ]
    reader = read(rows)
    marks = [found["href"] for found in reader.find("a", tabindex="-1")]
    n_scored = states.count("succeeded")
    assert len(marks) == 5 * len(rows) + n_scored  # two of history, two parameters, the timeline; parallel
    assert {f"#{found['id']}" for found in reader.find("tr") if "id" in found} == set(marks)


def test_numbers_keep_all_digits_beside_the_shown_ones(read):
    reader = read([make_row(1, metrics={"accuracy": 0.123456789})])
    (cell,) = reader.find("td", **{"class": "n goal"})
    assert cell["data-v"] == "0.123456789"
    assert "0.1235" in reader.texts


def test_links_lead_from_the_page_to_the_executed_notebook(tmp_path):
    store = Store(tmp_path / "deep" / "runs")
    bundle = store.create_run({"parameters": {"lr": 0.1}})
    bundle.notebook.write_text("{}")
    (tmp_path / "pages").mkdir()
    page = write_sweep_page(tmp_path / "pages" / "sweep.html", "Sweep", store.list_runs())
    links = [
        found["href"]
        for found in Reader(page.read_text()).find("a")
        if not found["href"].startswith(("#", "data:text/csv"))
    ]
    assert links
    assert {(page.parent / link).resolve() for link in links} == {bundle.notebook.resolve()}


def test_bundles_that_are_gone_or_damaged_are_counted(read, tmp_path):
    whole, torn = create_bundle(tmp_path / "whole", {}), create_bundle(tmp_path / "torn", {})
    for bundle in (whole, torn):
        for step in range(3):
            bundle.append("log", step=step, values={"accuracy": step / 10})
    (torn.path / "events.jsonl").write_text('{"event": "log", "values": 3}\n')
    rows = [
        make_row(number, path=str(tmp_path / name)) for number, name in enumerate(["whole", "torn", "gone"])
    ]
    reader = read(rows)
    assert "Learning curves" in headings(reader)
    assert "The bundles of 2 trials can't be read." in reader.texts


def test_curves_survive_whatever_was_logged(read, tmp_path):
    bundle = create_bundle(tmp_path / "odd", {})
    for step, value in [
        (0, math.nan),
        ("one", 0.5),
        (None, math.inf),
        (3, "text"),
        (10**400, 0.6),
        (5, None),
        (6, 1e308),
    ]:
        bundle.append("log", step=step, values={"accuracy": value, "constant": 1})
    reader = read([make_row(1, metrics={"accuracy": 0.5}, path=str(bundle.path))])
    assert "Learning curves" in headings(reader)
    assert not [found for found in reader.find("path") if "nan" in found["d"] or "inf" in found["d"]]


def test_a_pause_between_two_sessions_is_no_wall_time():
    rows = [make_row(0), make_row(1), make_row(100_000)]
    timeline = lay_out(rank_trials(rows, None))
    assert timeline.seconds == 28
    assert [(at, round(length)) for at, length in timeline.pauses] == [(19, 999_981)]


def test_trials_of_one_lane_never_overlap():
    dice = random.Random(0)
    rows = []
    for number in range(200):
        start = NOON + timedelta(seconds=dice.uniform(0, 500))
        end = start + timedelta(seconds=dice.uniform(0, 30))
        rows.append(make_row(number, started=f"{start:%FT%T.%fZ}", ended=f"{end:%FT%T.%fZ}"))
    timeline = lay_out(rank_trials(rows, None))
    for lane in range(timeline.n_lanes):
        spans = sorted((span.start, span.end) for span in timeline.spans if span.lane == lane)
        assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(spans))
    assert 0 < timeline.busy <= 1


def test_idle_slots_are_shown(read):
    reader = read([make_row(1)], about={"slots": 4})
    assert "4 slots, busy 25%" in reader.texts


def test_five_hundred_trials_make_a_small_page(tmp_path):
    dice, rows = random.Random(0), []
    for number in range(500):
        bundle = create_bundle(tmp_path / f"{number:03d}", {})
        with open(bundle.path / "events.jsonl", "a") as file:
            for step in range(200):
                values = {"accuracy": dice.random(), "loss": dice.random(), "val_loss": dice.random()}
                file.write(dump_json({"event": "log", "step": step, "values": values}) + "\n")
        parameters = {f"parameter_{at}": dice.random() for at in range(8)} | {"kind": dice.choice("abc")}
        rows.append(make_row(number, "succeeded", parameters, values, path=str(bundle.path), cost=0.01))
    page = write_sweep_page(tmp_path / "sweep.html", "Sweep", rows, GOAL)
    assert page.stat().st_size < 3_000_000
    assert page.read_text().count('"Learning curves of ') == 2


def test_two_thousand_trials_make_a_page_of_bounded_size(tmp_path):
    dice = random.Random(0)
    rows = [
        make_row(
            number,
            dice.choice(["succeeded", "succeeded", "succeeded", "failed", "pruned"]),
            {f"parameter_{at}": dice.random() for at in range(8)},
            {"accuracy": dice.random()},
            error="MemoryError: 1 GB",
        )
        for number in range(2000)
    ]
    reader = Reader(write_sweep_page(tmp_path / "sweep.html", "Sweep", rows, GOAL).read_text())
    assert (tmp_path / "sweep.html").stat().st_size < 2_500_000
    assert len(reader.find("circle")) < 10 * 401
    ids = {f"#{found['id']}" for found in reader.find("tr") if "id" in found}
    assert len(ids) == 1000
    assert {found["href"] for found in reader.find("a", tabindex="-1") if "href" in found} <= ids
    assert any(text.startswith("The first 1,000 of 2,000") for text in reader.texts)
    table = read_csv(reader)
    assert {row["run_id"] for row in table} == {row["run_id"] for row in rows}
    assert len(table) == 2000


def read_csv(reader):
    "The table that the page lets one download"
    (address,) = [found["href"] for found in reader.find("a") if "download" in found]
    head, _, content = address.partition(",")
    assert head == "data:text/csv;charset=utf-8"
    return list(csv.DictReader(io.StringIO(unquote(content))))


def test_the_file_has_every_digit_and_no_formula(read):
    parameters = {"lr": 1e-7, "kind": '=HYPERLINK("http://x","a")', "text": 'a,"b"\nc'}
    reader = read(
        [make_row(1, "succeeded", parameters, {"accuracy": 1 / 3}), make_row(2, "failed", error="-1")]
    )
    first, second = read_csv(reader)
    assert (float(first["metrics.accuracy"]), float(first["parameters.lr"])) == (1 / 3, 1e-7)
    assert first["parameters.kind"] == "'" + parameters["kind"]
    assert (first["parameters.text"], second["error"]) == (parameters["text"], "'-1")


def test_pruned_trials_are_listed_by_the_step_they_ended_at(read, tmp_path):
    rows = [make_row(0, "succeeded", {"lr": 0.1}, {"accuracy": 0.9})]
    for number, n_steps in enumerate([3, 3, 7, 0], start=1):
        bundle = create_bundle(tmp_path / f"run{number}", {})
        for step in range(n_steps):
            bundle.append("log", step=step, values={"accuracy": 0.1})
        rows.append(make_row(number, "pruned", {"lr": number}, {"accuracy": 0.1}, path=str(bundle.path)))
    reader = read(rows)
    assert "Pruned" in headings(reader)
    told = [text.strip() for text in reader.texts if " trial" in text and "step" in text]
    assert [text.partition(":")[0] for text in told] == [
        "after step 2, 2 trials",
        "after step 6, 1 trial",
        "at a step that nobody logged, 1 trial",
    ]
    assert len(reader.find("a", **{"class": "pruned"})) >= 4


def test_two_goals_give_a_plane_and_a_mark_for_the_pareto_set(read):
    goals = (("maximize", "accuracy"), ("minimize", "seconds"))
    points = [(0.9, 5.0), (0.95, 9.0), (0.8, 6.0), (0.95, 10.0), (0.99, 30.0)]
    rows = [
        make_row(number, "succeeded", {"width": number}, {"accuracy": accuracy}) | {"seconds": seconds}
        for number, (accuracy, seconds) in enumerate(points)
    ]
    assert [int(row["run_id"][16:19]) for row in order_rows(rows, goals)] == [4, 1, 0, 3, 2]
    reader = read(rows, goals)
    assert "Pareto set" in headings(reader)
    assert reader.texts.count("\u2605") == 3
    assert len(reader.find("tr", **{"class": "best"})) == 3
    assert [row["pareto"] for row in read_csv(reader)] == ["True"] * 3 + ["False"] * 2


def test_goals_that_came_through_json_are_goals(read):
    rows = [make_row(number, metrics={"accuracy": number, "loss": number}) for number in range(3)]
    goals = [["maximize", "accuracy"], ["minimize", "loss"]]
    assert "Pareto set" in headings(read(rows, goals))
    assert order_rows(rows, goals[0]) == order_rows(rows, GOAL)


def test_repeats_are_a_table_and_single_trials_are_none(read):
    dice = random.Random(0)
    rows = [
        make_row(3 * at + seed, "succeeded", {"lr": lr, "seed": seed},
                 {"accuracy": 0.9 - lr + dice.gauss(0, 0.01)})
        for at, lr in enumerate([0.1, 0.5]) for seed in range(3)
    ]  # fmt: skip
    reader = read(rows)
    assert "Which setting is the best?" in headings(reader)
    assert any(text.startswith("lr=0.1 is better than the other setting") for text in reader.texts)
    once = read(rows[::3])
    assert "Which setting is the best?" not in headings(once)
    assert any("the noise is unknown" in text for text in once.texts)


def test_the_table_can_be_sorted_by_a_script_that_the_policy_knows(read):
    reader = read([make_row(1)])
    assert len(reader.find("table", **{"class": "sortable"})) == 1
    assert any('querySelectorAll("table.sortable")' in text for text in reader.texts)
