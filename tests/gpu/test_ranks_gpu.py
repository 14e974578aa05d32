"""Ranks on real GPUs: nccl, and memory that is free again. Run by `pytest -m gpu` where there is one."""

import os
import time

import pytest

import scalekit as sk
from scalekit.devices import list_gpus
from scalekit.ranks.launcher import launch

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def test_one_rank_computes_on_the_gpu_of_its_worker(team):
    def train():
        import torch

        return str(sk.current_world().device), torch.arange(4, device="cuda").sum().cpu().item()

    assert launch(train, n_ranks=1, cluster=team) == ("cuda:0", 6)


def test_all_ranks_meet_over_nccl_and_over_gloo(team):
    def train():
        import torch

        world = sk.current_world()
        on_gpu = torch.full((2,), world.rank + 1.0, device=world.device)
        on_cpu = torch.full((2,), world.rank + 1.0)
        if world.size > 1:
            torch.distributed.all_reduce(on_gpu)
            torch.distributed.all_reduce(on_cpu)
        return on_gpu, on_cpu, os.environ["CUDA_VISIBLE_DEVICES"]

    n = len({slot.worker for slot in team.slots})
    on_gpu, on_cpu, seen = launch(train, n_ranks="all", cluster=team)
    assert on_gpu.tolist() == on_cpu.tolist() == [n * (n + 1) / 2] * 2
    assert on_gpu.device.type == "cpu" and "," not in seen  # what comes back needs no GPU


def test_ranks_with_ddp_end_with_equal_weights(team):
    def train():
        import torch

        world = sk.current_world()
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 1).to(world.device)
        wrapped = torch.nn.parallel.DistributedDataParallel(model) if world.size > 1 else model
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(torch.randn(4, 8, device=world.device)).sum().backward()
            optimizer.step()
        weights = model.weight.detach().cpu().numpy().tobytes()
        return [own == weights for own in world.control.gather("weights", weights)]

    assert all(launch(train, n_ranks="all", cluster=team))


def test_memory_of_a_rank_that_was_given_up_is_free_again(team, memory_comes_back):
    def train():
        import torch

        world = sk.current_world()
        held = torch.zeros(2**28, device=world.device)  # 1 GiB
        torch.cuda.synchronize()
        if world.rank == 0:
            raise NameError("not tried again")
        time.sleep(60)
        return held

    with memory_comes_back(), pytest.raises(sk.RankFailed, match="not tried again"):
        launch(train, n_ranks="all", cluster=team)


def test_a_batch_that_does_not_fit_is_halved(team):
    def train():
        import torch

        world = sk.current_world()
        world.beat(0, batch_size=2)
        if world.shrink == 1:
            torch.zeros(2**42, device=world.device)
        return world.shrink

    with pytest.warns(UserWarning, match="ran out of memory with batch_size=2"):
        assert launch(train, n_ranks=1, cluster=team) == 2
    assert list_gpus()
