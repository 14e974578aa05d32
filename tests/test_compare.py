"""What repeats of a sweep allow to say: never more than that."""

import math
import random

import pytest

from scalekit.compare import compare_groups
from scalekit.importance import measure_importance
from scalekit.ranking import BadGoal
from scalekit.repeats import find_interval

GOAL = ("maximize", "accuracy")


def make_rows(settings, seeds=range(3), name="seed"):
    "A row for each setting and seed; `settings` gives the scores by learning rate"
    return [
        {"run_id": f"{lr}-{seed}", "state": "succeeded", "parameters": {"lr": lr, name: seed},
         "metrics": {"accuracy": score}}
        for lr, scores in settings.items() for seed, score in zip(seeds, scores, strict=False)
    ]  # fmt: skip


def draw(dice, means, n, sd=1.0, shared=0.0):
    "Normal scores; `shared` is noise that a seed gives to all settings alike"
    luck = [dice.gauss(0, shared) for _ in range(n)]
    return {at: [mean + luck[seed] + dice.gauss(0, sd) for seed in range(n)] for at, mean in enumerate(means)}


@pytest.mark.parametrize(
    ("means", "n", "seeds"),
    [
        ([0, 0], 3, range(3)),
        ([0] * 8, 3, range(3)),
        ([0, 0, -30, -30], 4, range(4)),
        ([0, 0], 3, None),
        ([0] * 8, 4, None),
    ],
)
def test_the_truly_best_setting_is_seldom_ruled_out(means, n, seeds):
    dice = random.Random(len(means) + n)
    n_wrong = n_won = 0
    for _ in range(150):
        rows = make_rows(draw(dice, means, n), seeds or range(n))
        if seeds is None:  # other seeds everywhere: nothing to pair
            for number, row in enumerate(rows):
                row["parameters"]["seed"] = number
        comparison = compare_groups(rows, GOAL)
        assert comparison.test == ("Welch" if seeds is None else "paired")
        verdicts = {one.setting.values["lr"]: one.verdict for one in comparison.settings}
        n_wrong += verdicts[0] == "worse"
        n_won += comparison.winner is not None
    assert n_wrong <= 15, "150 sweeps at 5 %: 15 are three deviations too many"
    assert n_won <= 15, "there is no winner among equals"


def test_a_clear_winner_is_found():
    dice = random.Random(0)
    comparison = compare_groups(make_rows(draw(dice, [0, 0, 9], 4), range(4)), GOAL)
    assert comparison.winner.values == {"lr": 2}
    assert comparison.verdict.startswith("lr=2 is better than all 2 other settings: mean accuracy ")
    assert [one.verdict for one in comparison.settings] == ["best", "worse", "worse"]


def test_pairing_finds_what_the_luck_of_seeds_hides():
    rows = make_rows(draw(random.Random(3), [0, 1.5], 5, sd=0.3, shared=5), range(5))
    assert compare_groups(rows, GOAL).winner.values == {"lr": 1}
    for row in rows[:5]:
        row["parameters"]["seed"] += 100
    assert compare_groups(rows, GOAL).winner is None


def test_minimizing_turns_the_order_round():
    rows = make_rows({0: [1.0, 1.1, 1.2], 1: [9.0, 9.1, 9.3]})
    assert compare_groups(rows, ("minimize", "accuracy")).winner.values == {"lr": 0}
    assert compare_groups(rows, (("minimize", "accuracy"), ("minimize", "seconds"))).winner.values == {
        "lr": 0
    }


def test_scores_without_any_scatter_are_no_proof():
    comparison = compare_groups(make_rows({0: [0.9] * 3, 1: [0.8] * 3}), GOAL)
    assert comparison.winner is None
    assert [one.p for one in comparison.settings] == [None, 1.0]


def test_a_parameter_can_be_told_to_be_the_seed():
    rows = make_rows({0: [0.9, 0.91], 1: [0.5, 0.52]}, name="fold")
    assert len(compare_groups(rows, GOAL).settings) == 4
    told = compare_groups(rows, GOAL, seeds=["fold"])
    assert (len(told.settings), told.seeds) == (2, ["fold"])


def test_repeats_that_failed_are_told_and_running_ones_are_not_lost():
    rows = make_rows({0: [0.9, 0.91, 0.92], 1: [0.5, 0.52, 0.53]})
    rows[0] |= {"state": "failed", "metrics": {}}
    rows[1] |= {"state": "running", "metrics": {}}
    rows[3] |= {"state": "pruned"}
    comparison = compare_groups(rows, GOAL)
    assert {one.setting.label: (one.setting.n, one.setting.n_lost) for one in comparison.settings} == {
        "lr=0": (1, 1),
        "lr=1": (2, 1),
    }
    assert any(
        note.startswith("2 of 5 trials ended without a score, in 2 of 2 settings")
        for note in comparison.notes
    )


def test_a_setting_that_ran_once_is_not_compared_even_if_it_is_first():
    rows = make_rows({0: [0.9, 0.91], 1: [0.5, 0.52], 2: [0.99]})
    comparison = compare_groups(rows, GOAL)
    assert [one.verdict for one in comparison.settings] == ["ran once", "best", "worse"]
    assert (
        "Not compared, since they ran once: 1 of 3 settings. The highest place is one of them."
        in comparison.notes
    )
    assert comparison.winner is None
    assert comparison.verdict.startswith("lr=0 is better than the other setting with repeats: ")
    assert comparison.verdict.endswith(" lr=2 scored better, but ran once: that may be luck.")


def test_the_same_seed_twice_is_one_measurement():
    rows = make_rows({0: [0.9, 0.91, 0.92]})
    again = [row | {"run_id": f"later-{row['run_id']}"} for row in rows]
    (one,) = compare_groups(rows + again, GOAL).settings
    assert one.setting.n == 3


def test_more_repeats_are_planned_where_they_would_help():
    comparison = compare_groups(make_rows({0: [0.90, 0.92, 0.94], 1: [0.89, 0.93, 0.90]}), GOAL)
    (note,) = [
        note for note in comparison.notes if note.startswith("To tell the first two apart takes about")
    ]
    difference = [0.01, -0.01, 0.04]
    mean = sum(difference) / 3
    noise = sum((one - mean) ** 2 for one in difference) / 2
    assert f"about {math.ceil(8 * noise / mean**2)} repeats" in note


@pytest.mark.parametrize("scores", [[1e299, -1e299, 1e299], [5e-324, 0.0, 5e-324], [math.nan, math.inf, 1.0]])
def test_numbers_at_the_edge_break_nothing(scores):
    comparison = compare_groups(make_rows({0: scores, 1: scores[::-1]}), GOAL)
    assert comparison.winner is None
    assert all(row["p"] is None or 0 <= row["p"] <= 1 for row in comparison.table)


def test_a_wrong_goal_is_refused():
    with pytest.raises(BadGoal):
        compare_groups([], ("max", "accuracy"))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_covers_the_mean_as_often_as_it_says(n):
    dice = random.Random(n)
    covered = 0
    for _ in range(1000):
        low, high = find_interval([dice.gauss(3, 2) for _ in range(n)])
        covered += low <= 3 <= high
    assert 925 <= covered <= 975  # 950 and four deviations


def make_search(n, seed=0):
    dice = random.Random(seed)
    rows = []
    for _ in range(n):
        lr, kind, width = 10 ** dice.uniform(-4, -1), dice.choice("abc"), dice.randint(1, 100)
        score = math.log10(lr) + 0.3 * (kind == "a") + dice.gauss(0, 0.05)
        parameters = {"lr": lr, "kind": kind, "width": width, "note": f"trial {dice.random()}"}
        rows.append({"state": "succeeded", "parameters": parameters, "metrics": {"accuracy": score}})
    return rows


def test_importance_finds_what_matters_and_says_what_it_left_out():
    importance = measure_importance(make_search(60), GOAL)
    assert [share.name for share in importance.shares] == ["lr", "kind", "width"]
    assert importance.shares[0].low > 0.8
    assert importance.left_out == ["note"]
    assert all(0 <= share.low <= share.mean <= share.high <= 1 for share in importance.shares)


def test_importance_does_not_grow_with_the_number_of_trials_it_could_see():
    importance = measure_importance(make_search(1500), GOAL)
    assert (importance.shares[0].name, importance.n_trials) == ("lr", 1500)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "Too few trials"),
        (make_search(9), "Too few trials to tell: 9 finished, 10 are the least."),
        (
            [row | {"parameters": {"lr": row["parameters"]["lr"]}} for row in make_search(20)],
            "Two parameters",
        ),
        ([row | {"metrics": {"accuracy": 0.5}} for row in make_search(20)], "nothing to explain"),
        ([row | {"state": "failed"} for row in make_search(20)], "Too few trials"),
    ],
)
def test_importance_says_why_it_can_not_be_told(rows, reason):
    importance = measure_importance(rows, GOAL)
    assert importance.shares == []
    assert reason in importance.reason


def test_importance_takes_extreme_numbers():
    rows = make_search(12)
    for number, row in enumerate(rows):
        row["parameters"]["lr"] = [5e-324, 1e299, -1e299, 0.0][number % 4]
        row["metrics"]["accuracy"] = [1e299, -1e299, 0.0][number % 3]
    assert {share.name for share in measure_importance(rows, GOAL).shares} == {"lr", "kind", "width"}
