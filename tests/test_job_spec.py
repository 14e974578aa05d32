"""What a job may be, and what is said about one that can't be."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from notebooks import write_notebook

from scalekit.config import load_settings
from scalekit.core import ScaleKitError
from scalekit.jobs.book import NameTaken
from scalekit.jobs.checks import check_job, list_troubles, read_call
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.rules import JOB_RULES
from scalekit.jobs.spec import BadJob, JobSpec, Keep, Notify, Retries
from scalekit.jobs.tables import list_owners, list_table_troubles, read_jobs, sync_jobs
from scalekit.space import choice, log_uniform

PARAMETERS = """
from datetime import date
from typing import Annotated, Literal
from pydantic import Field, SecretStr
lr: Annotated[float, Field(gt=0, le=1)] = 0.1
model: Literal["mlp", "cnn"] = "mlp"
day: date = date(2026, 1, 1)
sizes: tuple[int, ...] = (1, 2)
token: SecretStr = SecretStr("")
"""


@pytest.fixture
def home(tmp_path):
    write_notebook(tmp_path / "train.ipynb", (PARAMETERS, "parameters"), "lr")
    return tmp_path


def _read(home, **table):
    return JobSpec.from_table("nightly", {"notebook": "train.ipynb"} | table, home, "scalekit.toml")


def _complaint(home, **table):
    with pytest.raises(BadJob) as caught:
        _read(home, **table)
    text = str(caught.value)
    assert text.startswith("scalekit.toml: job 'nightly'") and "\n" not in text
    return text


WRONG = {
    "notebook": [1, "", "train.py"], "parameters": [1, [], {"a b": 1}], "sweep": ["lr", []],
    "profile": [4, ""], "workers": [0, 1.5, "4", True],
    "cron": ["", "daily", "0 25 * * *", "* * * *", 5, "@nightly", "0 0 31 2 *"],
    "every": ["0", "soon", -1, "", True, "500ms"], "at": ["22:00", "tomorrow", "2026-13-01", True],
    "after": ["", " a", "a\nb"], "files": ["", 5], "timezone": ["CEST+1", "Mars", 2],
    "window": ["22-6", "night", 5], "window_end": ["stop"], "timeout": [0, "-4h", "long"],
    "retries": [-1, "3", 1.5], "max_cost": [0, -1, "40"],
    "catch_up": ["first"], "overlap": ["kill"], "notify": ["me", ["me"]], "keep": [30], "tags": ["a", [1]],
    "track": ["wanddb"], "resume": ["yes", 1],
}  # fmt: skip


def test_every_key_has_values_that_are_refused():
    assert set(WRONG) == set(JOB_RULES)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_told_with_its_key_and_a_right_one(home, key, value):
    text = _complaint(home, **{"window": "22:00-06:00"} | {key: value})
    assert f": {key} must be " in text and f"got {value!r}" in text and f"For example: {key} = " in text


@pytest.mark.parametrize("key", JOB_RULES)
def test_the_example_of_each_rule_can_be_written_so(home, key):
    import tomllib

    table = tomllib.loads(f"{key} = {JOB_RULES[key].example}")
    company = {"window_end": {"window": "22:00-06:00"}, "catch_up": {"cron": "@daily"}}
    assert _read(home, **company.get(key, {}), **table).name == "nightly"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"corn": "@daily"}, "unknown key 'corn'. Did you mean 'cron'?"),
        ({"retries": {"n": 1, "on": ["ooom"]}}, "retries: on must be a list of some of"),
        ({"retries": {"backoff": "2m"}}, "retries: n is missing"),
        ({"retries": {"n": 1, "backof": "2m"}}, "retries: unknown key 'backof'. Did you mean 'backoff'?"),
        ({"notify": {"on": ["failed"]}}, "notify: say one of webhook and email"),
        ({"notify": {"email": "me"}}, "notify: email must be an e-mail address"),
        ({"notify": {"webhook": "example.org"}}, "notify: webhook must be a web address"),
        ({"notify": [{"email": "a@b.c", "on": ["fail"]}]}, "notify: on must be a list of some of"),
        ({"keep": {"run": 1}}, "keep: unknown key 'run'. Did you mean 'runs'?"),
        ({"keep": {"days": 0}}, "keep: days must be a number above 0"),
        ({"sweep": {"goal": "maximize a"}}, "sweep: values to try are missing"),
        ({"sweep": {"grid": [1]}}, "sweep: grid must be a table of lists"),
        ({"sweep": {"grid": {"lr": [1]}, "max_cost": 4}}, "max_cost is said for the whole job"),
        ({"sweep": {"grid": {"lr": [1]}, "trials": 4}}, "unknown key 'trials'. Did you mean 'n_trials'?"),
        ({"cron": "@daily", "every": "6h"}, "one trigger, got cron and every"),
        ({"at": "2030-01-01", "after": "a", "files": "*"}, "one trigger, got at and after and files"),
        ({"after": "nightly"}, "it can't be due after itself"),
        ({"window_end": "wait"}, "window_end means nothing without window"),
        ({"after": "ingest", "catch_up": "last"}, "catch_up means nothing without cron or every or at"),
        ({"cron": "@daily", "catch_up": "all", "overlap": "skip"}, 'overlap = "skip"'),
        ({"cron": "@daily", "catch_up": "all", "overlap": "cancel-running"}, 'Say: overlap = "queue"'),
    ],
)  # fmt: skip
def test_what_can_t_be_meant_is_said_in_one_sentence(home, table, said):
    assert said in _complaint(home, **table)


def test_a_job_without_a_notebook_or_without_a_table_is_none(home):
    with pytest.raises(BadJob, match="notebook is missing"):
        JobSpec.from_table("a", {"cron": "@daily"}, home)
    with pytest.raises(BadJob, match="job 'a' must be a table, got 5"):
        JobSpec.from_table("a", 5, home)
    with pytest.raises(BadJob, match="notebook must be an absolute path"):
        JobSpec("a", "train.ipynb")
    for name in ("", " a", "a\nb", "x" * 201, 5):
        with pytest.raises(BadJob, match="name must be one line of text"):
            JobSpec(name, "/a.ipynb")


def test_catching_up_on_everything_queues_unless_something_else_is_said(home):
    assert _read(home, cron="@daily", catch_up="all").overlap == "queue"


def test_paths_start_from_the_folder_of_the_file(home):
    spec = _read(home, notebook="deep/../train.ipynb", files="inbox/*.csv")
    assert (spec.notebook, spec.files) == (str(home / "train.ipynb"), str(home / "inbox/*.csv"))


def test_the_home_of_somebody_unknown_is_told_and_hides_no_other_job(home):
    told = _complaint(home, files="~nobody-here/*.csv")
    assert "files = '~nobody-here/*.csv' begins with the home of" in told
    tables = read_jobs(_write(home, f"[job.lost]\nnotebook = '~nobody-here/a.ipynb'\n{NIGHT}"))
    assert list(tables.specs) == ["night"]
    assert "job 'lost': notebook = '~nobody-here" in tables.troubles["lost"]


def test_times_of_toml_are_times(home):
    several = _read(home, at=[datetime(2030, 1, 1, 22), date(2030, 1, 2), "2030-01-03T10:00:00Z"])
    assert several.at == "2030-01-01 22:00:00, 2030-01-02, 2030-01-03T10:00:00Z"
    assert _read(home, every=90).every == "90"


FULL = {
    "parameters": {"lr": 0.01, "day": date(2026, 5, 1), "sizes": (1, 2)}, "profile": "gpu", "workers": 4,
    "cron": "@daily", "timezone": "Europe/Berlin", "window": "22:00-06:00", "window_end": "finish",
    "timeout": "1h30m", "max_cost": 40, "catch_up": "none", "overlap": "cancel-running",
    "retries": {"n": 3, "backoff": "2m", "factor": 1.5, "on": ["oom"]}, "tags": ["a", "b"],
    "track": "wandb,mlflow",
    "notify": [{"webhook": "env:HOOK", "on": ["failed"]}, {"email": "me@example.org"}],
    "keep": {"runs": 30, "days": 90}, "resume": False,
    "sweep": {"grid": {"lr": [0.1], "model": choice("mlp", "cnn")}, "n_trials": 3, "goal": "maximize a"},
}  # fmt: skip


def test_a_job_comes_back_from_json_as_it_went(home):
    spec = _read(home, **FULL)
    again = JobSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert (
        again == spec and again.parameters["sizes"] == (1, 2) and again.parameters["day"] == date(2026, 5, 1)
    )
    assert spec.retries == Retries(3, 120.0, 1.5, ("oom",)) and spec.keep == Keep(30, 90)
    assert spec.notify == (Notify("env:HOOK", on=("failed",)), Notify(email="me@example.org"))
    assert (spec.timeout, spec.track, spec.sweep["grid"]["model"]) == (
        5_400,
        ("wandb", "mlflow"),
        "choice('mlp', 'cnn')",
    )


def test_json_of_a_newer_version_is_told():
    with pytest.raises(BadJob, match="a newer scalekit wrote 'gates'"):
        JobSpec.from_json({"name": "a", "notebook": "/a.ipynb", "gates": []})


def test_values_are_typed_by_the_notebook(home):
    call = read_call(_read(home, parameters={"lr": 1, "day": "2026-05-01", "sizes": [3, 4]}, timeout="90s"))
    assert call["parameters"] == {"lr": 1.0, "day": date(2026, 5, 1), "sizes": (3, 4)}
    assert call["run_timeout"] == 90 and "grid" not in call


def test_a_sweep_is_typed_too(home):
    grid = {"day": ["2026-05-01", "2026-05-02"], "lr": log_uniform(1e-3, 1e-1)}
    spec = _read(home, sweep={"grid": grid, "n_trials": 4}, max_cost=3, workers=2)
    call = read_call(spec)
    assert call["grid"] == {"day": [date(2026, 5, 1), date(2026, 5, 2)], "lr": log_uniform(1e-3, 1e-1)}
    assert (call["n_trials"], call["max_cost"], call["n_workers"]) == (4, 3, 2)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"parameters": {"sices": (1,)}}, "no parameter 'sices'. Did you mean 'sizes'?"),
        ({"parameters": {"lr": 2}}, "parameter lr must be <= 1"),
        ({"parameters": {"token": "hunter2"}}, "parameter token is a secret, and a job is written down"),
        ({"sweep": {"grid": {"model": ["mlp", "rnn"]}}}, "parameter model"),
        ({"sweep": {"grid": {"lr": "log_uniform(0, 1)"}, "n_trials": 3}}, "must begin above 0"),
        ({"sweep": {"grid": {"lr": "uniform(0.1, 1)"}}}, "a search needs a goal"),
        ({"sweep": {"grid": {"lr": [0.1]}, "goal": "best"}}, "goal"),
        ({"profile": "gpuu"}, "no profile 'gpuu'. Did you mean 'gpu'?"),
        ({"max_cost": 4}, "needs a price"),
        ({"at": "2020-01-01 10:00"}, "at = 2020-01-01 10:00 is over"),
        ({"notebook": "trian.ipynb"}, "there is no notebook"),
    ],
)  # fmt: skip
def test_what_can_be_known_before_the_night_is(home, table, said):
    spec = _read(home, **table)
    troubles = list_troubles(spec)
    assert len(troubles) == 1 and said in troubles[0] and troubles[0].startswith("job 'nightly': ")
    with pytest.raises(BadJob):
        check_job(spec)


def test_all_that_is_wrong_is_told_at_once(home):
    spec = _read(home, parameters={"rl": 1, "lr": 5}, profile="gpuu", at="2020-01-01")
    assert len(list_troubles(spec)) == 4


def test_a_required_secret_can_t_be_a_job(home):
    write_notebook(home / "train.ipynb", ("from pydantic import SecretStr\ntoken: SecretStr", "parameters"))
    assert 'token = SecretStr(os.environ["TOKEN"])' in list_troubles(_read(home))[0]


def test_a_job_that_is_right_has_no_trouble(home):
    assert (
        list_troubles(_read(home, parameters=FULL["parameters"], cron="@daily", notify=FULL["notify"])) == []
    )


# The file, and what becomes of it in the book


def _write(home, text):
    (home / "scalekit.toml").write_text(text)
    return load_settings(home, {})


NIGHT = '[job.night]\nnotebook = "train.ipynb"\ncron = "0 2 * * *"\n'


def test_a_bad_job_hides_no_good_one(home):
    bad = '[job.bad]\nnotebook = "train.ipynb"\ncron = "never"\n'
    tables = read_jobs(_write(home, f"job.number = 5\n{bad}{NIGHT}"))
    assert set(tables.specs) == {"night"} and set(tables.troubles) == {"bad", "number"}
    assert tables.troubles["bad"].startswith(f"{home / 'scalekit.toml'}: job 'bad': cron must be")


def test_jobs_that_wait_for_each_other_are_found(home):
    text = "".join(
        f'[job.{a}]\nnotebook = "train.ipynb"\nafter = "{b}"\n' for a, b in ("ab", "bc", "ca", "da", "ex")
    )
    tables = read_jobs(_write(home, text))
    assert set(tables.troubles) == {"a", "b", "c", "e"} and set(tables.specs) == {"d"}
    assert (
        "a after b after c after a" in tables.troubles["a"]
        and "after = 'x' is no job" in tables.troubles["e"]
    )


def test_a_file_with_the_usual_slips_is_told(home):
    with pytest.raises(ScaleKitError, match=r"a job stands under \[job.night\], got \[jobs.night\]"):
        _write(home, NIGHT.replace("[job.", "[jobs."))
    with pytest.raises(ScaleKitError, match="job must be tables, one for each job"):
        _write(home, 'job = "night"')


def _names(book):
    return {job.name: job.spec.cron for job in book.list_jobs()}


def test_the_book_follows_the_file(home):
    book = Ledger(home / "runs")
    sync_jobs(_write(home, NIGHT), book)
    job_id = book.get_job("night").job_id
    book.set_active("night", False)
    sync_jobs(_write(home, NIGHT.replace("0 2", "0 3")), book)
    job = book.get_job("night")
    assert (job.job_id, job.spec.cron, job.active) == (job_id, "0 3 * * *", False)  # a pause outlives an edit
    sync_jobs(_write(home, ""), book)
    assert _names(book) == {}


def test_a_file_that_did_not_change_writes_nothing(home):
    book = Ledger(home / "runs")
    settings = _write(home, NIGHT + "[job.bad]\nnotebook = 5\n")
    sync_jobs(settings, book)
    version = book.version()
    sync_jobs(settings, book)
    assert book.version() == version


def test_a_job_that_was_spoilt_goes_on_as_it_was(home):
    book = Ledger(home / "runs")
    sync_jobs(_write(home, NIGHT), book)
    sync_jobs(_write(home, NIGHT.replace("0 2", "0 26")), book)
    job = book.get_job("night")
    assert job.spec.cron == "0 2 * * *" and job.active and "its hour is wrong" in job.trouble
    sync_jobs(_write(home, NIGHT), book)
    assert book.get_job("night").trouble is None


def test_a_name_that_is_taken_is_told_and_changes_nothing(home):
    book = Ledger(home / "runs")
    book.put_job(JobSpec("night", str(home / "train.ipynb"), cron="@daily"), "cli")
    tables = sync_jobs(_write(home, NIGHT), book)
    assert "is kept by `scalekit schedule` already" in tables.troubles["night"]
    assert _names(book) == {"night": "@daily"} and set(list_table_troubles(book)) == {"night"}
    with pytest.raises(NameTaken):
        book.put_job(JobSpec("night", str(home / "train.ipynb")), "python")


def test_two_files_on_one_store_leave_each_other_alone(home, tmp_path_factory):
    other, book = tmp_path_factory.mktemp("other"), Ledger(home / "runs")
    sync_jobs(_write(home, NIGHT), book)
    both = NIGHT.replace("0 2", "0 4") + NIGHT.replace("night", "second")
    tables = sync_jobs(_write(other, both), book)
    assert f"is kept in {home / 'scalekit.toml'} already" in tables.troubles["night"]
    assert _names(book) == {"night": "0 2 * * *", "second": "0 2 * * *"}
    assert list_owners(book) == {"night": str(home / "scalekit.toml"), "second": str(other / "scalekit.toml")}
    sync_jobs(_write(home, ""), book)
    assert _names(book) == {"second": "0 2 * * *"}


def test_the_time_that_a_spec_is_checked_for_can_be_said(home):
    spec = _read(home, at="2026-06-01 10:00", timezone="UTC")
    assert list_troubles(spec, now=datetime(2026, 5, 1, tzinfo=UTC)) == []
    assert list_troubles(spec, now=datetime(2026, 7, 1, tzinfo=UTC)) != []
    assert Path(spec.notebook).is_file()
