"""What MLflow is sent of a run does not depend on when somebody looks."""

import random

import pytest

from scalekit.bundle import Bundle, create_bundle
from scalekit.track.mirror import make_mirror
from scalekit.track.mlflowpoints import list_points, make_batches, to_name

NAMES = ("loss", "val/f1", "loss (val)")


def make_bundle(folder, number: int, **asked) -> Bundle:
    return create_bundle(
        folder / f"20260501-12000{number}-000-9f2c1a", {"notebook": "a.ipynb", "parameters": {}} | asked
    )


def tell_something(bundle: Bundle, dice: random.Random) -> None:
    "A random event; values and steps come again"
    values = {dice.choice(NAMES): dice.choice((0.5, float("nan"), True, 3, "word", None)) for _ in range(2)}
    if dice.random() < 0.2:
        bundle.append("record", values=values, files={})
    elif dice.random() < 0.3:  # a row of wandb is open until the next one
        bundle.append("log", step=dice.randrange(3), values=values, source="wandb", wandb="a.wandb")
    else:
        bundle.append("log", step=dice.choice((None, None, 7, 7.5, "a", 2**70)), values=values)


@pytest.mark.parametrize("seed", range(5))
def test_points_of_rows_stay_as_they_were_sent(tmp_path, seed):
    dice, bundle, seen = random.Random(seed), make_bundle(tmp_path, 0), []
    bundle.set_state("running")
    for _ in range(30):
        tell_something(bundle, dice)
        seen.append(list_points(make_mirror([bundle], "mlflow")))
    bundle.set_state("failed")
    second = make_bundle(tmp_path, 1, resumed=bundle.run_id)
    rows, results = list_points(make_mirror([bundle], "mlflow"))
    for rows_then, results_then in seen:  # by their texts: NaN is not itself
        assert repr(rows[: len(rows_then)]) == repr(rows_then)
        assert repr(results[: len(results_then)]) == repr(results_then)
    second.set_state("running")
    tell_something(second, dice)
    second.set_state("succeeded")
    both = list_points(make_mirror([bundle, second], "mlflow"))
    assert repr(both[0][: len(rows)]) == repr(rows)
    assert repr(both[1][: len(results)]) == repr(results)


@pytest.mark.parametrize("seed", range(3))
def test_no_two_points_look_the_same(tmp_path, seed):
    dice, bundle = random.Random(seed), make_bundle(tmp_path, 0)
    bundle.set_state("running")
    for _ in range(200):
        tell_something(bundle, dice)
    bundle.set_state("succeeded")
    points = [point for part in list_points(make_mirror([bundle], "mlflow")) for row in part for point in row]
    assert len({repr(point) for point in points}) == len(points) > 100


def test_batches_hold_all_points_and_end_with_whole_rows(tmp_path):
    rows = [[(row, n) for n in range(row % 5)] for row in range(100)]
    for begin in (0, 50, 99, 100):
        batches = list(make_batches(rows, begin, most=7))
        assert [point for batch in batches for point in batch.points] == [
            p for row in rows[begin:] for p in row
        ]
        assert all(len(batch.points) <= 7 for batch in batches)
        for batch in batches:
            assert {row for row, _ in batch.points} and max(row for row, _ in batch.points) >= batch.rows - 5
        assert not batches or batches[-1].rows == 100


@pytest.mark.parametrize(
    "name", ["", "/", "..", "a/../b", "ä", "emoji 🙂", "x" * 1000, "a\nb", "a//b/", "./a"]
)
def test_every_name_becomes_one_that_the_client_takes(name):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        validate(to_name(name))
    assert len(to_name(name)) <= 250
