"""A training that goes on where it stopped, alone and on two ranks."""

import errno
import math
import warnings

import pytest
import torch
from processes import wait_until
from two_ranks import CPU, fit, make, make_data

from scalekit.core import ScaleKitError
from scalekit.ranks.world import Preempted, World, enter_world
from scalekit.train.loop import training
from scalekit.train.meter import Meter
from scalekit.train.order import Order
from scalekit.train.stepper import Stepper


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def alone(tmp_path):
    "A world of one that keeps checkpoints"
    with enter_world(World(0, 1, CPU, folder=tmp_path)) as world:
        yield world


class Dropped(Exception):
    "The machine is gone"


class Noisy(torch.utils.data.Dataset):
    "Samples with an augmentation"

    def __len__(self):
        return 22

    def __getitem__(self, index):
        x, y = make_data()
        return x[index] + 0.1 * torch.randn(4), y[index]


def make_noisy(kind):
    "Model with dropout and buffers, optimizer, schedule, data and options of a kind of training"
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40)
    options = {"batch_size": 8, "n_epochs": 3, "scheduler": scheduler, "checkpoint_every": 1, "clip": 1.0}
    data = Noisy() if kind == "dataset" else tuple(t[:22] for t in make_data())
    if kind == "fp16":
        options |= {"precision": "fp16", "accumulate": 2}
    if kind == "loader":
        from torchdata.stateful_dataloader import StatefulDataLoader

        data = StatefulDataLoader(torch.utils.data.TensorDataset(*data), batch_size=4, shuffle=True)
        options |= {"accumulate": 2, "batch_size": None}
    return model, optimizer, data, options


def learn(kind, stop_after=None, stop_in=None, **more):
    "Everything that a training ends with; it may be dropped after a step, or in the middle of one"
    model, optimizer, data, options = make_noisy(kind)
    with training(model, optimizer, data, **{**options, **more}, extra={"losses": []}) as job:
        for batch in job:
            loss = torch.nn.functional.mse_loss(job.model(batch.x), batch.y)
            job.step(loss)
            if job.ends_step:
                job.extra["losses"].append(loss.item())
            if job.n_steps == stop_in and not job.ends_step:
                raise Dropped
            if job.n_steps == stop_after and job.ends_step:
                stop_after = None
                job.checkpoint()
                raise Dropped
    scaler = job.stepper.scaler and job.stepper.scaler.state_dict()
    state = [*model.state_dict().values(), *(s["exp_avg"] for s in optimizer.state.values()), torch.rand(3)]
    return state, options["scheduler"].state_dict(), scaler, job.extra["losses"], job.n_steps


def assert_same(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("kind", ["tensors", "dataset", "fp16", "loader"])
def test_a_training_dropped_after_any_step_ends_with_the_same_bits(kind, tmp_path):
    whole = learn(kind, checkpoint_every=None)
    assert whole[4] == 9
    for step in range(1, 10):
        with enter_world(World(0, 1, CPU, folder=tmp_path / str(step))):
            with pytest.raises(Dropped):
                learn(kind, stop_after=step)
            assert_same(learn(kind), whole)


def test_a_training_dropped_in_the_middle_of_a_step_begins_that_step_anew(alone):
    whole = learn("fp16", name="whole")
    with pytest.raises(Dropped):
        learn("fp16", stop_in=4)
    assert_same(learn("fp16"), whole)


def test_the_middle_of_a_step_is_never_saved(alone):
    model, optimizer = make()
    with training(model, optimizer, make_data(), batch_size=12, n_epochs=1, accumulate=2) as job:
        for batch in job:
            job.step(job.model(batch.x).mean())
            if not job.ends_step:
                with pytest.raises(ScaleKitError, match="in the middle of a step nothing is whole"):
                    job.checkpoint()


def test_a_training_that_is_done_is_not_done_again(alone):
    weights, job = fit(n_epochs=2)
    again, second = fit(n_epochs=2)
    assert (again, second.n_steps) == (weights, job.n_steps) == (weights, 10)
    longer, third = fit(n_epochs=3)
    assert third.n_steps == 15 and longer != weights
    with enter_world(World(0, 1, CPU)):
        assert fit(n_epochs=3)[0] == longer


def test_two_ranks_end_with_the_weights_of_one(ranks):
    for case, options in (("ddp", {}), ("ddp_accumulated", {"clip": 0.5}), ("fsdp", {})):
        own = [rank[case]["weights"] if case == "fsdp" else rank[case] for rank in ranks]
        assert own[0] == own[1]
        one = torch.tensor(fit(**options)[0])
        assert torch.allclose(torch.tensor(own[0]), one, rtol=1e-6, atol=1e-7)
    assert ranks[0]["fsdp"]["kind"] == "DTensor"


def test_ranks_average_gradients_once_a_step_not_in_every_micro_batch(ranks):
    for rank in ranks:
        for found in rank["averaged"].values():
            ends = [ends_step for ends_step, _ in found]
            assert [spoke for _, spoke in found] == ends and True in ends and False in ends


def test_two_ranks_then_one_then_two_see_one_order_and_end_as_one(ranks):
    steps = {}
    for rank in ranks:
        for epoch, step, indices in rank["resized"]["seen"]:
            steps.setdefault((epoch, step), []).extend(indices)
    order = Order(50)
    assert sorted(steps) == [(epoch, step) for epoch in range(3) for step in range(5)]
    for (epoch, step), indices in steps.items():
        assert sorted(indices) == sorted(order.epoch(epoch)[12 * step : 12 * step + 12].tolist())
    first, second = (rank["resized"]["weights"] for rank in ranks)
    assert first == second == pytest.approx(fit()[0], rel=1e-5, abs=1e-7)


def test_ranks_in_bf16_end_equal_and_as_one_does(ranks):
    first, second = (rank["halved"] for rank in ranks)
    assert first == second and first["kinds"] == ["torch.bfloat16"]
    assert first["weights"] == pytest.approx(fit(precision="bf16")[0], rel=0.02, abs=2e-3)


def test_a_sharded_training_goes_on_exactly(ranks):
    assert ranks[0]["fsdp_resumed"] == ranks[0]["fsdp"]["weights"]


def test_all_ranks_leave_after_the_same_step_and_go_on(ranks):
    first, second = (rank["preempted"] for rank in ranks)
    assert "asked to leave (SIGTERM)" in second["told"]
    assert first["told"].partition("saved after")[2] == second["told"].partition("saved after")[2] != ""
    assert first["weights"] == second["weights"] and first["steps"] == 300
    whole = fit(n_epochs=60)[0]
    assert torch.allclose(torch.tensor(first["weights"]), torch.tensor(whole), rtol=1e-5, atol=1e-6)


def test_mistakes_that_only_ranks_can_make_have_a_sentence(ranks):
    told = ranks[1]["refused"]
    assert "can't be cut for 2 ranks x accumulate=1. Write batch_size=12 or 14" in told["undivided"]
    assert "did not come through job.model, so gradients would not be averaged" in told["around"]
    assert "this loader gives rank 1 the samples of all" in told["blind"]


def test_unequal_batches_of_a_loader_weigh_as_one_batch(ranks):
    assert ranks[0]["unequal"] == ranks[1]["unequal"] and ranks[0]["unequal"]["steps"] == 5
    x, y = make_data()
    model, _ = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        rows = [*range(4 * step, 4 * step + 4), *range(20 + 2 * step, 22 + 2 * step)]
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    one = torch.cat([w.detach().flatten() for w in model.parameters()])
    assert torch.allclose(torch.tensor(ranks[0]["unequal"]["weights"]), one, rtol=1e-6, atol=1e-7)


def test_an_evaluation_is_the_mean_over_all_samples_on_every_rank(ranks):
    x, y = make_data()
    expected = torch.nn.functional.mse_loss(make()[0](x), y).item()
    assert ranks[0]["evaluated"] == ranks[1]["evaluated"] == pytest.approx(expected, rel=1e-6)


def test_an_incomplete_batch_counts_as_its_samples():
    model, _ = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = (t[:7] for t in make_data())
    options = {"batch_size": 12, "max_steps": 1, "accumulate": 4}
    with training(model, optimizer, (x, y), **options) as job:
        for batch in job:
            job.step(torch.nn.functional.mse_loss(job.model(batch.x), batch.y))
    other, _ = make()
    torch.nn.functional.mse_loss(other(x), y).backward()
    for own, plain in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(own, plain - 0.1 * plain.grad, atol=1e-7)


def attempt(call=None, model=None, optimizer=None, data=None, step=True, **options):
    own, adam = make()
    model, optimizer = model or own, optimizer or adam
    with training(
        model, optimizer, data or make_data(), **{"batch_size": 12, "n_epochs": 1, **options}
    ) as job:
        for batch in job:
            if step:
                job.step((call or torch.nn.functional.mse_loss)(job.model(batch.x), batch.y))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": torch.nn.Linear}, "must be an instance, not the class"),
        ({"model": make()[0]}, "4 of the 4 tensors that the optimizer changes are not in the model"),
        ({"data": torch.utils.data.DataLoader([1, 2])}, "a DataLoader can't say where it is"),
        ({"step": False}, r"had no job.step\(loss\)"),
        ({"call": lambda out, y: out - y}, r"Write step\(loss.mean\(\)\)"),
        ({"call": lambda out, y: 0.5}, "a loss is a tensor, got float"),
        ({"call": lambda out, y: y.mean()}, "this loss knows no weights"),
        ({"batch_size": 10, "accumulate": 4}, "Write batch_size=8 or 12"),
        ({"precision": "fp61"}, "Did you mean 'fp16'"),
        ({"checkpoint_every": "soon"}, "Write checkpoint_every='5min'"),
        ({"n_epochs": None}, "how long"),
        ({"clip": -1}, "clip is the largest norm"),
        ({"goal": "loss"}, "goal must be like"),
        ({"loader_options": {"shuffle": True}, "data": Noisy()}, "'shuffle' can't be an option"),
        ({"strategy": "zero"}, "strategy='zero' is not known"),
        ({"last": "drop", "batch_size": 60}, "Write last='keep', or batch_size=50 or less"),
    ],
)  # fmt: skip
def test_a_mistake_has_a_sentence_with_the_way_out(options, sentence):
    with pytest.raises(ScaleKitError, match=sentence):
        attempt(**options)


def test_a_training_that_was_not_opened_says_how():
    with pytest.raises(ScaleKitError, match=r"with sk.training\(...\) as job"):
        next(iter(training(*make(), make_data(), batch_size=12, n_epochs=1)))


def test_a_step_too_many_is_refused():
    def twice():
        with training(*make(), make_data(), batch_size=12, n_epochs=1) as job:
            for batch in job:
                loss = job.model(batch.x).mean()
                job.step(loss)
                job.step(loss)

    with pytest.raises(ScaleKitError, match="each batch has one step"):
        twice()


def test_autocast_around_another_model_is_noticed():
    other = make()[0]

    def beside():
        with training(*make(), make_data(), batch_size=12, n_epochs=1, precision="bf16") as job:
            for batch in job:
                job.step(other(batch.x).mean())

    with pytest.raises(ScaleKitError, match="did not come through job.model, so it is in fp32"):
        beside()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 10}, "batch_size was 12, is 10"),
        ({"data": tuple(2 * t for t in make_data())}, "content of the data has changed"),
        ({"optimizer": "other"}, "lr was 0.01, is 0.5"),
    ],
)
def test_a_changed_training_says_what_differs_and_goes_on_if_asked(alone, capsys, change, words):
    attempt(max_steps=3)
    if "optimizer" in change:
        model, _ = make()
        change = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.5)}
    with pytest.raises(ScaleKitError, match=words) as error:
        attempt(**change)
    assert "resume='anyway'" in str(error.value) and "name='training2'" in str(error.value)
    attempt(**change, resume="anyway")
    assert f"going on after step 3 although {words}" in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_told_with_its_step(alone):
    def spoil(out, y, seen=[]):  # noqa: B006
        seen.append(1)
        return out.mean() * (math.nan if len(seen) == 3 else 1)

    with pytest.warns(UserWarning, match="the loss is nan at step 3"):
        attempt(spoil, log_every=1)


def test_a_training_can_stop_before_it_learns_from_nan():
    model, optimizer = make()
    with pytest.raises(ScaleKitError, match="the loss is nan after step 0; the model is as it was"):
        attempt(lambda out, y: out.mean() * math.nan, model=model, optimizer=optimizer, stop_on_nan=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), make()[0].parameters(), strict=True))


def test_alone_a_notice_saves_and_leaves(alone):
    def leave():
        with training(*make(), make_data(), batch_size=12, n_epochs=3) as job:
            for batch in job:
                job.step(torch.nn.functional.mse_loss(job.model(batch.x), batch.y))
                if job.n_steps == 4:
                    alone.reason = "SIGTERM"

    with pytest.raises(Preempted, match=r"asked to leave \(SIGTERM\); saved after step 4"):
        leave()


def test_a_save_that_failed_stops_the_training_at_the_next_step_not_at_the_next_save(alone, monkeypatch):
    def refuse(*words):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("scalekit.shelf.Shelf.publish", refuse)
    model, optimizer = make()
    with (
        pytest.raises(ScaleKitError, match="step 10 can't be saved: the disk is full"),
        training(model, optimizer, make_data(), batch_size=12, n_epochs=60, checkpoint_every=10) as job,
    ):
        for batch in job:
            job.step(torch.nn.functional.mse_loss(job.model(batch.x), batch.y))
            if job.n_steps > 10:
                wait_until(job._keeper.saver._pending[0].done)
    assert job.n_steps == 11


def test_the_best_step_is_kept_by_what_is_logged(alone):
    model, optimizer = make()
    scores = iter([3.0, 1.0, 2.0, 4.0])
    with training(
        model, optimizer, make_data(), batch_size=50, n_epochs=4, goal="minimize score", keep_last=1
    ) as job:
        for batch in job:
            job.step(torch.nn.functional.mse_loss(job.model(batch.x), batch.y))
            score = next(scores)
            job.log(score=score)
            if score == 1.0:
                best = [w.detach().clone() for w in model.parameters()]
        job.load_best()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), best, strict=True))


def test_a_shrunk_world_computes_the_same_in_smaller_pieces():
    whole = torch.tensor(fit()[0])
    with enter_world(World(0, 1, CPU, attempt=2, shrink=2)):
        weights, job = fit()
    assert job._asked.accumulate == 2
    assert torch.allclose(torch.tensor(weights), whole, rtol=1e-6, atol=1e-7)


def test_curves_checkpoints_and_the_time_split_are_in_the_bundle(tmp_path, monkeypatch):
    from scalekit.bundle import create_bundle

    monkeypatch.setenv("SCALEKIT_KEY_FILE", str(tmp_path / "key"))
    bundle = create_bundle(tmp_path / "20260501-120000-123-9f2c1a", {"notebook": "train.ipynb"})
    monkeypatch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
    attempt(log_every=2, checkpoint_every=2)
    assert [step for step, _ in bundle.curves()["loss"]] == [2, 4, 5]
    assert [event["step"] for event in bundle.events() if event["event"] == "checkpoint"] == [2, 4, 5]
    assert bundle.records()["training"]["n_samples"] == 50


def test_tf32_is_set_back():
    held = torch.get_float32_matmul_precision()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        attempt(
            lambda out, y: out.mean() * (torch.get_float32_matmul_precision() == "high"), precision="tf32"
        )
    assert torch.get_float32_matmul_precision() == held
    assert any("on a CPU it is fp32" in str(warning.message) for warning in told)


def test_a_model_with_autocast_gives_outputs_in_full_precision():
    seen = []
    attempt(lambda out, y: seen.append(out.dtype) or (out - y).square().mean(), precision="bf16")
    assert set(seen) == {torch.float32}


def test_waiting_for_data_is_measured_and_named():
    import time

    class Slow(Noisy):
        def __getitem__(self, index):
            time.sleep(0.002)
            return super().__getitem__(index)

    with training(*make(), Slow(), batch_size=2, n_epochs=2) as job:
        for batch in job:
            job.step(job.model(batch.x).mean())
    assert job.report.data > 0.3 and "raise n_workers (now 0;" in job.report.limit
    assert Meter(CPU).report().seconds == 0.0


def test_a_compiled_training_is_the_same():
    traced = []

    def trace(graph, inputs):  # in place of a compiler, which would take half a minute
        traced.append(graph)
        return graph

    weights = fit(n_epochs=1, compile={"backend": trace})[0]
    assert len(traced) >= 1 and weights == fit(n_epochs=1)[0]


def test_a_compiled_model_is_not_passed_by():
    model, optimizer = make()
    with pytest.raises(ScaleKitError, match="did not come through job.model, so it is not compiled"):  # noqa: SIM117
        with training(model, optimizer, make_data(), batch_size=50, n_epochs=1, compile=True) as job:
            for batch in job:
                job.step(model(batch.x).mean())


def test_gradients_are_clipped_at_their_own_size_not_at_the_scaled_one():
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    stepper = Stepper(torch.optim.SGD([weight], lr=1.0), clip=10.0, scaler=scaler)
    stepper.backward((weight * torch.tensor([3.0, 4.0])).sum())
    stepper.step()
    assert weight.tolist() == pytest.approx([-2.0, -3.0])  # a norm of 5 is within the bound


def test_a_step_that_overflows_is_left_out_and_the_schedule_waits():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    stepper = Stepper(optimizer, scheduler=scheduler, scaler=torch.amp.GradScaler("cpu"))
    stepper.backward((weight * math.inf).sum())
    stepper.step()
    assert (weight.item(), stepper.n_skipped, scheduler.last_epoch) == (1.0, 1, 0)
    stepper.backward(weight.sum())
    stepper.step()
    assert (weight.item(), stepper.n_skipped, scheduler.last_epoch) == (0.0, 1, 1)


def test_an_evaluation_is_without_dropout_and_the_training_goes_on_with_it():
    x, y = make_data()
    model = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with training(model, optimizer, (x, y), batch_size=50, n_epochs=1) as job:
        found = job.evaluate((x, y), lambda batch: job.model(batch.x).mean())
        assert model.training and found == pytest.approx(model[1](x).mean().item(), rel=1e-5)
