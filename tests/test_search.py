"""Searched sweeps: spaces, proposals, pruning, budgets, and going on."""

import json
import time
from pathlib import Path

import pytest
from notebooks import read_cells, write_notebook

import scalekit as sk
from scalekit import sweeps
from scalekit.attempts import Attempt
from scalekit.budget import Budget
from scalekit.bundle import Bundle
from scalekit.cli import main
from scalekit.core import ScaleKitError
from scalekit.search import Search
from scalekit.store import Store
from scalekit.study import Study
from scalekit.trials import SweepStopped, plan_sweep

pytestmark = pytest.mark.usefixtures("place")

HEAD = """
from typing import Annotated, Literal
from annotated_types import Ge, Gt, Le
lr: Annotated[float, Ge(1e-5), Le(1)] = 0.1
width: Annotated[int, Ge(8), Le(512)] = 64
kind: Literal["mlp", "cnn"] = "cnn"
seed: int = 0
"""
PARAMETERS = (HEAD, "parameters")
SCORE = "import scalekit as sk\nsk.record(score=1 - abs(lr - 0.01), size=width)"
LOOP = """
import time
for step in range(1, 41):
    print(step, flush=True)
    sk.log(score=lr * step, step=step)
    time.sleep(0.1 if lr < 0.5 else 0.02)
"""


@pytest.fixture
def notebook(place):
    return write_notebook(place / "train.ipynb", PARAMETERS, SCORE)


@pytest.fixture
def sweep(slots):
    "A sweep on the shared cluster that shows nothing"

    def run(**named):
        return sk.sweep("train.ipynb", **{"profile": slots, "on_progress": lambda progress: None, **named})

    return run


def resume(name="train", **named):
    return sk.resume_sweep(name, on_progress=lambda progress: None, **named)


def rows_of(**filters):
    return Store("runs").list_runs(**filters)


def asked_of(row):
    return Store("runs").open_run(row["run_id"]).asked


RATE = sk.log_uniform(1e-4, 1e-1)
GOAL = "maximize score"


# What is proposed


def test_each_proposal_is_a_run_with_typed_values_inside_the_space_and_numbers_are_unbroken(notebook, sweep):
    found = sweep(
        lr=RATE, width=sk.int_uniform(16, 64, step=16), kind=sk.from_signature(), goal=GOAL, n_trials=8
    )
    assert sorted(asked_of(row)["trial"] for row in found.rows) == list(range(8))
    assert {asked_of(row)["sweep"] for row in found.rows} == {found.sweep_id}
    values = [row["parameters"] for row in found.rows]
    assert all(1e-4 <= one["lr"] <= 1e-1 and one["kind"] in ("mlp", "cnn") for one in values)
    assert all(type(one["width"]) is int and one["width"] in (16, 32, 48, 64) for one in values)
    scores = [row["metrics"]["score"] for row in found.rows]
    assert scores == sorted(scores, reverse=True) and found.best.metrics["score"] == scores[0]


def test_a_countable_space_is_tried_once_and_no_further(notebook, sweep):
    for sampler in ("tpe", "grid", "random"):
        found = sweep(
            lr=sk.choice(0.1, 0.2), kind=sk.choice("mlp", "cnn"), goal=GOAL, n_trials=9, sampler=sampler
        )
        tried = [(row["parameters"]["lr"], row["parameters"]["kind"]) for row in found.rows]
        assert sorted(tried) == [(0.1, "cnn"), (0.1, "mlp"), (0.2, "cnn"), (0.2, "mlp")]
    assert len(rows_of()) == 3 * 4


def test_the_same_call_again_does_nothing_and_a_larger_one_only_the_rest(notebook, sweep, monkeypatch):
    first = sweep(lr=RATE, goal=GOAL, n_trials=3)
    more = sweep(lr=RATE, goal=GOAL, n_trials=5)
    assert more.sweep_id == first.sweep_id and len(rows_of()) == 5
    assert {row["run_id"] for row in first.rows} < {row["run_id"] for row in more.rows}
    monkeypatch.setattr(sweeps, "open_cluster", lambda **_: pytest.fail("a cluster was opened"))
    assert len(sweep(lr=RATE, goal=GOAL, n_trials=4).rows) == 5


def test_a_list_beside_a_space_is_a_choice_of_the_search(notebook, sweep):
    found = sweep(lr=RATE, seed=[3, 4], goal=GOAL, n_trials=4)
    assert {row["parameters"]["seed"] for row in found.rows} <= {3, 4}
    assert len({row["parameters"]["lr"] for row in found.rows}) == 4


def test_lists_alone_with_a_pruner_are_a_grid_that_may_be_pruned(notebook, sweep):
    found = sweep(lr=[0.1, 0.2], seed=[1, 2], goal=GOAL, pruner="median")
    assert sorted((row["parameters"]["lr"], row["parameters"]["seed"]) for row in found.rows) == [
        (0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2),
    ]  # fmt: skip


def test_a_seeded_search_proposes_the_same_again_and_goes_on_without_repeating_itself(tmp_path):
    def ask(name, n):
        study = Study(tmp_path / name, Search({"lr": RATE}, (("minimize", "loss"),), "random", seed=5))
        return [study.ask().values["lr"] for _ in range(n)]

    assert ask("a", 4) == ask("b", 4)
    assert not set(ask("a", 4)) & set(ask("b", 0) + ask("c", 4))


def test_optuna_itself_can_open_what_a_sweep_leaves(notebook, sweep):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    found = sweep(lr=RATE, goal=GOAL, n_trials=4)
    file = str(found.page.with_name("search.log"))
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(file)))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert study.best_value == found.best.metrics["score"]
    assert study.best_params == {"lr": found.best.parameters["lr"]}


def test_several_goals_give_a_front(notebook, sweep):
    found = sweep(
        lr=RATE, width=sk.int_uniform(8, 512), goal="max score, min size", n_trials=8, sampler="nsgaii"
    )
    front = {(run.metrics["score"], run.metrics["size"]) for run in found.front}
    rest = [(row["metrics"]["score"], row["metrics"]["size"]) for row in found.rows]
    beaten = {(s, n) for s, n in rest if any(a >= s and b <= n and (a, b) != (s, n) for a, b in rest)}
    assert front == set(rest) - beaten and front


def test_a_yaml_file_of_wandb_is_a_search(notebook, slots, capsys):
    Path("sweep.yaml").write_text(
        "method: random\nmetric: {name: score, goal: maximize}\nrun_cap: 3\nprogram: train.py\n"
        "parameters:\n  lr: {distribution: log_uniform_values, min: 0.001, max: 0.1}\n  seed: {value: 7}\n"
    )
    assert main(["sweep", "train.ipynb", "--space", "sweep.yaml", "--profile", slots]) == 0
    assert {row["parameters"]["seed"] for row in rows_of()} == {7} and len(rows_of()) == 3
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["seed", "lr", "score"]


# What is pruned


def test_a_bad_trial_is_interrupted_keeps_its_outputs_and_ends_as_pruned(place, sweep):
    write_notebook(
        place / "train.ipynb", PARAMETERS, "import scalekit as sk", LOOP, "sk.record(score=lr * 40)"
    )
    found = sweep(lr=[0.9, 0.8, 0.01, 0.02], goal=GOAL, pruner="median(n_startup_trials=2, n_warmup_steps=3)")
    states = {row["parameters"]["lr"]: row["state"] for row in found.rows}
    assert states == {0.9: "succeeded", 0.8: "succeeded", 0.01: "pruned", 0.02: "pruned"}
    pruned = next(row for row in found.rows if row["state"] == "pruned")
    cell = read_cells(Path(pruned["path"]) / "notebook.ipynb")[2]
    assert cell.text.startswith("1\n2\n3\n") and len(cell.text.split()) < 40
    assert cell.errors[-1][0] == "Pruned"
    assert found.notes == () and pruned["sealed"]


def test_pruning_without_a_curve_is_said_at_the_end(notebook, sweep):
    found = sweep(lr=RATE, goal=GOAL, n_trials=2, pruner="asha")
    assert found.notes == (
        "no trial could be pruned: train.ipynb logs no score while it runs. Add to its loop: "
        "sk.log(score=..., step=...)",
    )


def test_a_goal_that_no_trial_reaches_ends_the_search_early(notebook, sweep):
    with pytest.raises(
        SweepStopped, match="3 trials .* goal's metric 'scroe'. Did you mean 'score'"
    ) as caught:
        sweep(lr=RATE, goal="maximize scroe", n_trials=40)
    assert len(caught.value.sweep.rows) < 10


# What it may cost


@pytest.fixture
def paid(slots):
    "A profile with a price of one an hour and slot, times a thousand"
    Path("scalekit.toml").write_text(
        f'[profiles.paid]\nkind = "address"\naddress = "{slots}"\nprice_per_hour = 1000.0\n'
    )
    return "paid"


def read_cost(row):
    return row["cost"] or 0.0


def test_when_the_money_is_spent_nothing_new_starts_and_what_runs_is_stopped(place, sweep, paid):
    work = "import time; time.sleep(0 if lr < 0.5 else 600)"
    write_notebook(place / "train.ipynb", PARAMETERS, work, SCORE)
    asked = {"lr": [0.1, 0.2, 0.3, 0.9, 0.8, 0.7], "goal": GOAL, "profile": paid, "sampler": "grid"}
    found = sweep(**asked, max_cost=1.5)
    (note,) = found.notes
    assert note.startswith("max_cost 1.5 is reached: ")
    assert {row["state"] for row in found.rows} <= {"succeeded", "cancelled"}
    assert sum(row["started"] is not None for row in rows_of()) < 6 and sum(map(read_cost, rows_of())) > 0
    assert sweep(**asked, max_cost=1.5).notes[0].startswith("max_cost 1.5 is reached")
    assert all(row["parameters"]["lr"] < 0.5 for row in rows_of(state="succeeded"))


def test_hours_end_a_search_that_has_no_number_of_trials(notebook, sweep, monkeypatch):
    "An hour passes once two trials have succeeded"
    later = lambda: time.monotonic() + 3600 * (len(rows_of(state="succeeded")) > 1)  # noqa: E731
    monkeypatch.setattr("scalekit.budget.monotonic", later)
    found = sweep(lr=RATE, goal=GOAL, max_hours=0.5)
    assert found.notes[0].startswith("max_hours 0.5 is reached")
    assert found.best is not None


@pytest.mark.parametrize(
    "named, sentence",
    [
        ({"lr": RATE}, 'a search needs a goal. Example: goal="maximize accuracy"'),
        ({"lr": RATE, "goal": GOAL}, "a search needs an end. Example: n_trials=64"),
        ({"lr": RATE, "goal": GOAL, "n_trials": 0}, "n_trials must be a whole number of at least 1, got 0"),
        ({"lr": RATE, "goal": GOAL, "n_trials": 4, "sampler": "tpee"}, "Did you mean 'tpe'?"),
        ({"lr": RATE, "goal": GOAL, "n_trials": 4, "pruner": "ahsa"}, "Did you mean 'asha'?"),
        ({"lr": RATE, "goal": "max a, min b", "n_trials": 4, "pruner": "asha"}, "trials by one goal"),
        ({"lr": RATE, "goal": GOAL, "n_trials": 4, "sampler": "grid"}, "Give it a step"),
        ({"lr": sk.uniform(0.1, 2), "goal": GOAL, "n_trials": 4}, "lr must be <= 1, got 2"),
        ({"widht": RATE, "goal": GOAL, "n_trials": 4}, "Did you mean 'width'?"),
        ({"width": sk.uniform(8, 64), "goal": GOAL, "n_trials": 4}, "Example: int_uniform(8, 64)"),
        ({"kind": sk.choice("mlp", "cn"), "goal": GOAL}, "kind must be"),
        ({"seed": sk.from_signature(), "goal": GOAL, "n_trials": 2}, "seed has no two bounds"),
        ({"lr": RATE, "parameters": {"lr": 1}, "goal": GOAL, "n_trials": 4}, "both searched and given"),
        ({"lr": [0.1], "max_cost": 5}, "max_cost=5 needs a price, and profile 'auto' has none"),
        ({"lr": [0.1], "max_hours": 0}, "max_hours must be a number above 0, got 0"),
        ({"goal": GOAL, "n_trials": 4}, "a search needs a space"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(notebook, monkeypatch, named, sentence):
    monkeypatch.setattr(sweeps, "open_cluster", lambda **_: pytest.fail("a cluster was opened"))
    with pytest.raises(ScaleKitError) as caught:
        sk.sweep("train.ipynb", **named)
    assert sentence in str(caught.value)
    assert not Path("runs").exists()


# Once more


def test_a_failed_trial_is_tried_again_under_its_number_and_the_next_attempt_knows_the_last(place, sweep):
    fails = (
        "from pathlib import Path\nmark = Path(f'mark-{lr}')\nif not mark.exists():\n    mark.touch(); 1 / 0"
    )
    write_notebook(place / "train.ipynb", PARAMETERS, fails, SCORE)
    found = sweep(lr=RATE, goal=GOAL, n_trials=3, retries=1)
    assert [row["state"] for row in found.rows] == ["succeeded"] * 3
    made = sorted((asked_of(row)["trial"], asked_of(row)["attempt"], row["state"]) for row in rows_of())
    assert made == [(n, a, s) for n in range(3) for a, s in ((1, "failed"), (2, "succeeded"))]
    failed = Bundle(next(row for row in rows_of() if row["state"] == "failed")["path"])
    first = Attempt(4, None, bundle=failed)
    assert [first.again(lost=False).previous, first.again(True).again(True).previous] == [failed] * 2


def test_a_trial_that_fails_for_good_is_told_to_the_search_and_made_again_on_request(place, sweep):
    write_notebook(
        place / "train.ipynb", PARAMETERS, "assert seed or __import__('os').path.exists('mended')", SCORE
    )
    first = sweep(lr=[0.1, 0.2], seed=[0, 1], goal=GOAL, sampler="grid")
    assert [row["state"] for row in first.rows].count("failed") == 2
    study = Study(first.page.with_name("search.log"), Search({}, (("maximize", "score"),)))
    assert study.list_open() == []
    Path("mended").touch()
    assert len(resume().rows) == 4 and len(rows_of()) == 4
    again = resume(retry_failed=True)
    assert [row["state"] for row in again.rows] == ["succeeded"] * 4 and len(rows_of()) == 6
    assert sorted(row["trial"] for row in again.rows) == [0, 1, 2, 3]


def test_a_grid_goes_on_by_its_name_too(place, sweep):
    write_notebook(
        place / "train.ipynb", PARAMETERS, "assert seed or __import__('os').path.exists('mended')", SCORE
    )
    first = sweep(seed=[0, 1, 2], goal=GOAL)
    Path("mended").touch()
    assert [row["state"] for row in resume(first.sweep_id).rows] == ["succeeded", "succeeded", "failed"]
    assert [row["state"] for row in resume(first.sweep_id[:9], retry_failed=True).rows] == ["succeeded"] * 3
    with pytest.raises(ScaleKitError, match="is a grid and has no more trials"):
        resume(more=3)


def test_more_trials_are_added_by_name_and_the_command_says_what_is_wrong(notebook, sweep, capsys):
    found = sweep(lr=RATE, goal=GOAL, n_trials=2)
    assert main(["sweep", "--resume", found.sweep_id, "--more", "2"]) == 0
    assert len(rows_of()) == 4
    for words, sentence in (
        (["--resume", f"{found.sweep_id}x"], f"is none. Did you mean '{found.sweep_id}'?"),
        (["train.ipynb", "--more", "2"], "--retry-failed and --more go with --resume"),
        ([], "which notebook?"),
        (["--resume", "train", "-s", "lr"], "leave out the notebook"),
        (["train.ipynb", "-s", "lr=log_uniform(0, 1)", "--goal", GOAL], "space of lr: log_uniform(0, 1)"),
    ):
        capsys.readouterr()
        assert main(["sweep", *words]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1


def test_a_notebook_that_has_changed_is_another_sweep(notebook, sweep):
    sweep(lr=RATE, goal=GOAL, n_trials=2)
    write_notebook(notebook, PARAMETERS, SCORE + "\n# changed")
    with pytest.raises(ScaleKitError, match="was changed since. Put the old one back"):
        resume(more=2)
    sweep(lr=RATE, goal=GOAL, n_trials=2)
    assert len(rows_of()) == 4
    with pytest.raises(ScaleKitError, match="sweep 'train' fits several: train-"):
        resume()


def test_a_secret_is_given_again_when_a_sweep_goes_on(place, sweep, monkeypatch):
    from pydantic import SecretStr

    head = HEAD + "\nfrom pydantic import SecretStr\ntoken: SecretStr"
    write_notebook(
        place / "train.ipynb", (head, "parameters"), SCORE + "\nsk.record(n=len(token.get_secret_value()))"
    )
    found = sweep(lr=RATE, goal=GOAL, n_trials=1, parameters={"token": SecretStr("hunter2-hunter")})
    assert b"hunter2" not in b"".join(path.read_bytes() for path in found.page.parent.iterdir())
    with pytest.raises(ScaleKitError, match="token was masked when it was saved"):
        resume(more=1)
    monkeypatch.setenv("TOKEN", "hunter2-hunter")
    assert [row["metrics"]["n"] for row in resume(more=1, parameters=["token=env:TOKEN"]).rows] == [14, 14]


# How it is shown


def test_who_watches_learns_the_best_so_far_and_how_many_were_pruned(notebook, sweep):
    seen = []
    found = sweep(lr=RATE, goal=GOAL, n_trials=4, on_progress=lambda now: seen.append((now.n_done, now.best)))
    assert (seen[0], seen[-1][0]) == ((0, None), 4)
    assert seen[-1][1]["run_id"] == found.best.run_id
    again = []
    sweep(lr=RATE, goal=GOAL, n_trials=5, on_progress=lambda now: again.append((now.n_done, now.best)))
    assert again[0][0] == 4 and again[0][1]["run_id"] == found.best.run_id


def test_without_a_terminal_there_is_a_line_now_and_then(notebook, slots, capsys):
    words = ["-s", "lr=log_uniform(1e-4,1e-1)", "--trials", "3", "--goal", GOAL, "--profile", slots]
    assert main(["sweep", "train.ipynb", *words]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "0/3 trials" in lines[0] and "3/3 trials" in lines[-1] and "best score" in lines[-1]
    assert len(lines) <= 4


def test_what_was_asked_is_written_before_the_first_trial(notebook, slots):
    plan = plan_sweep(
        "train.ipynb", {}, goal=GOAL, space={"lr": RATE}, n_trials=3, budget=Budget(max_hours=1)
    )
    looks = []

    def look(progress):
        if not looks:
            looks.append(json.loads(Path(f"runs/sweeps/{plan.sweep_id}/sweep.json").read_text()))
            looks.append(len(rows_of()))
            time.sleep(0.01)

    sweeps.run_sweep(plan, slots, on_progress=look)
    asked, n_runs = looks
    assert (asked["most"], asked["budget"]["max_hours"], n_runs) == (3, 1, 0)
    assert str(Path.home()) not in json.dumps(asked)
