"""Prices and their age, machines that are taken away, energy, and plans in time and money."""

import math
import random
import tomllib
import warnings
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

import scalekit as sk
from scalekit.config import load_settings
from scalekit.core import ScaleKitError
from scalekit.costs.energy import measure_energy
from scalekit.costs.interruptions import Interruptions, draw_times
from scalekit.costs.plan import BadPlan, choose_plan, plan_run
from scalekit.costs.prices import Price, UnknownPrice, find_price, list_prices, say_money
from scalekit.costs.totals import compare_run, cost_predictions, plan_sweep
from scalekit.profile import Profile
from scalekit.rules import ConfigError
from scalekit.scaling.batches import fit_batches

pytest_plugins = "gpusim.fixtures"

LAB = Price("lab", 6.9)
TODAY = date(2026, 11, 22)


@pytest.fixture(scope="module")
def fit():
    return sk.fit_scaling({1: 100.0, 2: 193.0, 4: 372.0, 8: 700.0})


@pytest.fixture
def project(tmp_path, monkeypatch):
    "Function that writes scalekit.toml and reads it"
    monkeypatch.chdir(tmp_path)

    def write(text):
        Path("scalekit.toml").write_text(text)
        return load_settings(environ={})

    return write


# Prices


def test_each_price_of_the_list_has_a_date_a_source_and_a_copy_to_read(root):
    tables = tomllib.loads((root / "scalekit" / "costs" / "prices.toml").read_text())
    for name, table in tables.items():
        assert table["date"] <= date.today(), name
        assert table["source"].startswith("https://") and table["read"].startswith("https://"), name
        assert 0.3 < table["per_hour"] / table["gpus"] < 20, name
        assert 0 < table.get("spot_per_hour", 0.1) < table["per_hour"], name


def test_the_list_goes_into_the_package(root):
    assert '"scalekit.costs": ["*.toml"]' in (root / "setup.py").read_text()


def test_an_old_price_says_how_old_and_a_new_one_nothing(project):
    settings = project("")
    price = list_prices(settings)["aws p5.48xlarge"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_price("aws p5", settings, today=price.dated + timedelta(90))
        find_price(2.5, settings)
    with pytest.warns(
        UserWarning, match=r"aws p5.48xlarge is 91 days old \(2026-11-09\). Newer: https://aws"
    ):
        find_price("aws p5", settings, today=price.dated + timedelta(91))


def test_scalekit_toml_wins_over_the_list_and_has_no_age(project):
    settings = project('[prices."aws p5.48xlarge"]\nper_hour = 31.4\ngpus = 8\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        price = find_price("aws p5", settings, today=TODAY + timedelta(1000))
    assert price.rate(8) == 31.4


def test_hardware_of_ones_own_has_a_price_for_each_gpu_or_its_current(project):
    settings = project(
        "[prices.rack]\nper_gpu_hour = 1.1\n[prices.desk]\nwatts = 420\nper_kwh = 0.31\ncurrency = 'EUR'\n"
    )
    assert find_price("rack", settings).rate(8) == pytest.approx(8.8)
    desk = find_price("desk", settings)
    assert (desk.rate(1), desk.currency) == (pytest.approx(0.1302), "EUR")


def test_part_of_a_machine_costs_the_whole_one():
    machine = Price("rented", 55.04, gpus=8)
    assert [machine.rate(n) for n in (1, 8, 9)] == [55.04, 55.04, 110.08]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("aws p6", "no price known for 'aws p6', set it with per_hour"),
        ("gcp a2", "may mean gcp a2-highgpu-1g or gcp a2-highgpu-2g"),
        ("asw p5.48xlarge", "Did you mean 'aws p5.48xlarge'"),
        ("", "no price known for ''"),
        (0, "price must be an amount above 0"),
        (float("nan"), "price must be an amount above 0"),
        (True, "price must be an amount above 0"),
    ],
)
def test_a_price_that_is_not_known_is_one_sentence(project, asked, words):
    with pytest.raises(ScaleKitError) as caught:
        find_price(asked, project(""))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[prices]\nlab = 3\n", "price 'lab' must be a table"),
        ("[prices.lab]\nper_our = 3\n", "Did you mean 'per_hour'"),
        ("[prices.lab]\nper_hour = -3\n", "per_hour must be an amount above 0"),
        ("[prices.lab]\nwatts = 400\n", "must say one of per_hour, per_gpu_hour, or watts with per_kwh"),
        ("[prices.lab]\nper_hour = 1\nper_gpu_hour = 1\n", "must say one of"),
        ("[prices.lab]\nper_hour = 1\ncurrency = 'dollars'\n", "three capital letters"),
        ("[prices]\nfile = 'none.toml'\n", "none.toml: can't be read"),
        ("prices = 3\n", "prices must be a table"),
    ],
)
def test_a_mistake_in_scalekit_toml_is_one_sentence_with_its_place(project, text, words):
    with pytest.raises(ConfigError) as caught:
        list_prices(project(text))
    assert words in str(caught.value) and "toml" in str(caught.value) and "\n" not in str(caught.value)


def test_money_is_never_shown_as_nothing():
    rng = random.Random(3)
    for _ in range(300):
        value = 10 ** rng.uniform(-7, 6)
        shown = say_money(value)
        assert float(shown.strip("$").replace(",", "")) == pytest.approx(value, rel=0.05), value


# Machines that are taken away


def test_the_best_interval_is_the_best_one():
    for per_hour, save in ((0.01, 5), (0.1, 30), (2.0, 60), (0.5, 1)):
        known = Interruptions(per_hour, save, restart=120)
        best = known.interval()
        others = [known.stretch(interval=best * factor) for factor in (0.7, 0.85, 1.15, 1.4)]
        assert known.stretch() <= min(others)
        assert best == pytest.approx(math.sqrt(2 * save * 3600 / per_hour), rel=0.25)  # Young


def test_the_expected_time_is_that_of_a_simulation():
    known, work, rng = Interruptions(1.0, save=30, restart=120), 6 * 3600.0, random.Random(1)
    each, mean, times = known.interval(), known.between(), []
    for _ in range(3000):
        clock, done = 0.0, 0.0
        while done < work:
            part = min(each, work - done)
            until = rng.expovariate(1 / mean)
            if until >= part + known.save:
                clock, done = clock + part + known.save, done + part
                continue
            clock += until
            while (wait := rng.expovariate(1 / mean)) < known.restart:  # taken away while it comes back
                clock += wait
            clock += known.restart
        times.append(clock)
    assert np.mean(times) == pytest.approx(work * known.stretch(), rel=0.02)
    drawn = draw_times(np.full(2000, work), known)
    assert drawn.mean() == pytest.approx(work * known.stretch(), rel=1e-6)
    for quantile in (0.05, 0.95):
        assert np.quantile(drawn, quantile) == pytest.approx(np.quantile(times, quantile), rel=0.06)


def test_more_machines_are_taken_away_more_often():
    known = Interruptions(0.1, save=20, restart=300)
    assert known.interval(16) < known.interval(1)
    assert known.stretch(16) > known.stretch(1) > 1


def test_machines_that_never_stay_are_told_in_words(fit):
    plan = plan_run(fit, 4, LAB, samples=1e6, interruptions=Interruptions(10_000, save=60, restart=600))
    assert not plan.can_tell and "never end" in str(plan)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "often", True, None])
def test_interruptions_that_can_not_be_meant_are_one_sentence(value):
    for name in ("per_hour", "save", "restart"):
        with pytest.raises(ScaleKitError, match=f"{name} must be a number from 0 on"):
            Interruptions(**({"per_hour": 0.1, "save": 1.0, "restart": 1.0} | {name: value}))


# Energy


def test_cards_that_count_are_read_and_others_are_estimates(run_on_gpus):
    script = """
        import time
        from scalekit.costs.energy import measure_energy
        with measure_energy() as meter:
            time.sleep(1.0)
        used = meter.energy
        report(joules=used.joules, source=used.source, seconds=meter.seconds, text=str(used))
    """
    counted = run_on_gpus(script, n_gpus=2, watts=250)
    assert counted["source"] == "counter" and "estimate" not in counted["text"]
    assert counted["joules"] == pytest.approx(2 * 250 * counted["seconds"], rel=0.3)
    guessed = run_on_gpus(script, n_gpus=2, no_energy=1)
    assert guessed["source"] == "estimate" and "estimate" in guessed["text"]
    assert guessed["joules"] == pytest.approx(
        2 * 700 * guessed["seconds"], rel=0.01
    )  # the limit of its power


def test_without_a_gpu_only_watts_that_somebody_said_count():
    with measure_energy(read=list) as silent:
        pass
    with measure_energy(watts=90, read=list) as said:
        pass
    assert silent.energy is None
    assert said.energy.source == "estimate" and said.energy.joules == 90 * said.seconds


# Plans


def test_the_interval_of_the_throughput_is_the_interval_of_time_and_money(fit):
    plan, said = plan_run(fit, 16, LAB, samples=4e6), fit.predict(16)
    assert plan.seconds.median == pytest.approx(4e6 / said.median, rel=1e-3)
    assert plan.seconds.high == pytest.approx(4e6 / said.low, rel=1e-2)
    assert plan.money.low == pytest.approx(4e6 / said.high / 3600 * 16 * 6.9, rel=1e-2)


def test_startup_is_time_and_money(fit):
    plain, slow = (plan_run(fit, 4, LAB, samples=1e5, startup=s) for s in (0, 600))
    assert slow.seconds.median - plain.seconds.median == pytest.approx(600)
    assert slow.money.median - plain.money.median == pytest.approx(600 / 3600 * 4 * 6.9)


def test_no_price_is_a_sentence_and_no_amount(fit):
    plan = plan_run(fit, 4, find_price(profile=Profile("gpu", kind="gpu")), samples=1e6)
    assert plan.money is None and "$" not in str(plan)
    assert "no price known for these GPUs, set it with" in str(plan)


def test_spot_without_a_price_for_it_is_refused(fit):
    with pytest.raises(UnknownPrice, match="no spot price known for 'lab', set it with spot_per_hour under"):
        plan_run(fit, 4, LAB, samples=1e6, spot=True)


def test_what_can_not_be_predicted_has_no_price():
    rough = sk.fit_scaling({1: 100, 2: 150, 4: 90, 8: 300})
    plan = plan_run(rough, 16, LAB, samples=1e6)
    assert (plan.seconds, plan.money) == (None, None)
    assert "cannot tell" in str(plan)
    assert choose_plan([plan]).best is None


def test_advice_is_on_time_to_target_and_not_on_throughput(fit):
    target = fit_batches(
        {32: 41_000, 64: 21_400, 128: 11_600, 256: 6_700, 512: 4_200}
    )  # critical batch about 250
    plans = [plan_run(fit, n, LAB, target=target, global_batch=512 * n) for n in (1, 8)]
    steps, rate = target.predict_steps(4096).median, fit.predict(8).median
    assert plans[1].seconds.median == pytest.approx(steps * 4096 / rate, rel=0.02)
    speedup = plans[0].seconds.median / plans[1].seconds.median
    assert speedup < 0.45 * fit.predict(8).median / fit.predict(1).median


def test_the_cheapest_that_keeps_deadline_and_budget_is_taken(fit):
    plans = [plan_run(fit, n, LAB, samples=4e6) for n in (1, 2, 4, 8)]
    assert [choose_plan(plans, hours * 3600).best.n for hours in (24, 8, 4, 2)] == [1, 2, 4, 8]
    choice = choose_plan(plans, 4 * 3600, 200)
    assert choice.is_sure
    assert str(choice).startswith("4 GPUs: 3.0 h (")
    assert "8 GPUs save 8" in str(choice) and "and cost $" in str(choice)


def test_a_limit_that_nothing_keeps_is_told(fit):
    plans = [plan_run(fit, n, LAB, samples=4e6) for n in (1, 2, 4, 8)]
    late = choose_plan(plans, 600)
    assert (late.is_sure, late.best.n) == (False, 8) and "None keeps 10 min" in str(late)
    dear = choose_plan(plans, None, 5)
    assert (dear.is_sure, dear.best.n) == (False, 1) and "None keeps $5" in str(dear)


def test_a_budget_without_a_price_is_told(fit):
    choice = choose_plan([plan_run(fit, n, samples=4e6) for n in (1, 4)], budget=50)
    assert not choice.is_sure and "nobody can tell without a price" in str(choice)


def test_a_sweep_and_a_million_predictions_have_intervals_too(fit):
    plan = plan_run(fit, 1, LAB, samples=1e5)
    total = plan_sweep(plan, 64, at_once=4)
    assert total.money.high == pytest.approx(64 * plan.money.high)
    assert total.seconds.median == pytest.approx(16 * plan.seconds.median)
    cost = cost_predictions(fit.draw_rates(16), LAB, 16)
    assert cost.low < cost.median < cost.high
    assert cost.median == pytest.approx(1e6 / fit.predict(16).median / 3600 * 16 * 6.9, rel=1e-3)


def test_predicted_stands_beside_actual(fit):
    plan = plan_run(fit, 4, LAB, samples=4e6)
    assert "inside the interval" in compare_run(plan, plan.seconds.median)
    assert "outside the interval: measure again" in compare_run(plan, 2 * plan.seconds.median)


@pytest.mark.parametrize("work", [{}, {"samples": -1}, {"samples": float("inf")}, {"samples": True}])
def test_a_plan_without_work_is_one_sentence(fit, work):
    with pytest.raises(ScaleKitError, match="samples"):
        plan_run(fit, 4, LAB, **work)


def test_the_same_plan_is_the_same_twice(fit):
    spot = Price("spot", 6.9, spot_per_hour=2.0)
    kwargs = {"samples": 4e6, "spot": True, "interruptions": Interruptions(0.2, 20, 300)}
    assert plan_run(fit, 4, spot, **kwargs) == plan_run(fit, 4, spot, **kwargs)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), "200", True])
def test_a_limit_that_can_not_be_meant_is_one_sentence(fit, limit):
    plans = [plan_run(fit, 2, samples=1e6)]
    with pytest.raises(BadPlan, match="budget must be an amount of money above 0, as 200, got"):
        choose_plan(plans, budget=limit)
    with pytest.raises(BadPlan, match='deadline must be a time above 0, as "8h", got'):
        choose_plan(plans, deadline=limit)
