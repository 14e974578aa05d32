"""Trainings on a real GPU, and on several over nccl. Run by `pytest -m gpu` where there is one."""

import sys
import time

import cloudpickle
import pytest
import torch

import scalekit as sk
from scalekit.ranks.launcher import launch
from scalekit.ranks.world import World, enter_world
from scalekit.train.feed import find_source, put_on_device
from scalekit.train.loop import training
from scalekit.train.order import Cut, Span

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no rank finds this file
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def train(stop_after=None, **options):
    "Weights on the CPU, the losses of each step, and the job"
    import torch

    from scalekit.train.loop import training

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(1))
    options = {"batch_size": 64, "n_epochs": 8, "extra": {"losses": []}, **options}
    with training(model, optimizer, (x, x.sum(1, keepdim=True)), **options) as job:
        for batch in job:
            loss = torch.nn.functional.mse_loss(job.model(batch.x), batch.y)
            job.step(loss)
            job.extra["losses"].append(loss.item())
            if job.n_steps == stop_after:
                job.checkpoint()
                raise InterruptedError
    return torch.cat([w.detach().flatten().cpu() for w in model.parameters()]), job.extra["losses"], job


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_training_learns_in_every_precision(precision):
    _, losses, job = train(precision=precision)
    assert job.world.device.type == "cuda" and next(job.module.parameters()).is_cuda
    assert losses[-1] < 0.2 * losses[0]
    assert (job.stepper.scaler is not None) == (precision == "fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_goes_on_bit_by_bit(tmp_path, precision):
    whole, losses, _ = train(precision=precision)
    with enter_world(World(0, 1, torch.device("cuda:0"), folder=tmp_path)):
        with pytest.raises(InterruptedError):
            train(precision=precision, stop_after=29)
        weights, again, _ = train(precision=precision)
    assert torch.equal(weights, whole) and again == losses


@pytest.mark.parametrize("n_workers", [0, 2])
def test_batches_that_were_pinned_and_fetched_ahead_are_equal(n_workers):
    device, x = torch.device("cuda:0"), torch.randn(1000, 16)
    span = Span(Cut(1000, 48), n_epochs=2, max_steps=None)
    data = torch.utils.data.TensorDataset(x, x.sum(1))
    plain = [batch for _, batch in find_source(data).open(span)]
    fetched = put_on_device(find_source(data, n_workers=n_workers, pin=True).open(span), device)
    busy = torch.rand(4096, 4096, device=device)
    for (_, batch), (x, y) in zip(fetched, plain, strict=True):
        busy = torch.nn.functional.normalize(busy @ busy)  # the copies overtake this
        assert batch.x.is_cuda and torch.equal(batch.x.cpu(), x) and torch.equal(batch.y.cpu(), y)


def test_the_time_a_gpu_stands_still_is_seen():
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 400

        def __getitem__(self, index):
            time.sleep(0.002)
            return torch.ones(8), torch.ones(1)

    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with training(model, optimizer, Slow(), batch_size=2, n_epochs=1) as job:
        for batch in job:
            job.step((job.model(batch.x) - batch.y).square().mean())
    assert job.report.data > 0.3


def test_all_gpus_over_nccl_end_with_the_weights_of_one(team):
    def train_on_ranks(size):
        weights, losses, job = train(batch_size=64 * size)
        own = weights.numpy().tobytes()
        control = job.world.control
        return weights, control is None or len(set(control.gather("weights", own))) == 1

    n = len({slot.worker for slot in team.slots})
    one, _ = launch(train_on_ranks, n, n_ranks=1, cluster=team)
    weights, equal = launch(train_on_ranks, n, n_ranks="all", cluster=team)
    assert equal and torch.allclose(weights, one, rtol=1e-4, atol=1e-5)


def test_memory_of_a_training_that_failed_is_free_again(team, memory_comes_back):
    def fail():
        big = torch.zeros(2**28, device=sk.current_world().device)  # 1 GiB
        train(n_epochs=1)
        raise NameError(f"not tried again; held {big.numel()} numbers")

    with memory_comes_back(), pytest.raises(sk.RankFailed, match="not tried again"):
        launch(fail, n_ranks="all", cluster=team)
