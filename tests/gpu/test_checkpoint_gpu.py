"""Checkpoints of a training on a real GPU. Run by `pytest -m gpu` where there is one."""

import time

import pytest
import torch

from scalekit.train.buffers import Buffers
from scalekit.train.saver import Saver
from scalekit.train.state import put_own, put_state, take_own, take_state

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def make():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 1)).cuda()
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


def do_step(objects):
    objects["optimizer"].zero_grad()
    objects["model"](torch.rand(32, 64, device="cuda")).square().mean().backward()
    objects["optimizer"].step()


def test_copies_are_pinned_and_hold_what_was_there_before_later_work_of_the_gpu():
    tensors = [torch.ones(50_000_000, device="cuda"), torch.ones(30, 20, device="cuda").T, torch.ones(3)]
    buffers = Buffers()
    for value in (1.0, 2.0):
        copies = buffers.copy(tensors)
        for tensor in tensors:
            tensor += 1  # queued behind the copy on the GPU
        buffers.wait()
        assert all(copy.is_pinned() for copy in copies)
        assert [copy.unique().tolist() for copy in copies] == [[value]] * 3


def test_a_save_does_not_wait_for_the_gpu(tmp_path):
    big = {"big": torch.ones(200_000_000, device="cuda")}
    work = torch.rand(8192, 8192, device="cuda")
    with Saver(tmp_path) as saver:
        saver.save(1, big)
        saver.wait()
        torch.cuda.synchronize()
        for _ in range(20):
            work = torch.nn.functional.normalize(work @ work)
        saver.save(2, big)
        event = torch.cuda.Event()
        event.record()
        assert not event.query()


def test_a_training_goes_on_bit_by_bit(tmp_path):
    objects, again = make(), make()
    do_step(objects)
    with Saver(tmp_path) as saver:
        saver.save(1, take_state(objects), take_own())
        do_step(objects)
        found = saver.load()
    put_state(again, found.state)
    put_own(found.own)
    do_step(again)
    for old, new in zip(objects["model"].parameters(), again["model"].parameters(), strict=True):
        assert new.is_cuda and old.equal(new)


def test_the_time_that_a_save_of_300_mb_holds_a_training_up_is_told(tmp_path, record_property):
    state = {str(number): torch.ones(1024, 1024, device="cuda") for number in range(72)}
    with Saver(tmp_path) as saver:
        saver.save(1, state)
        times = []
        for step in range(2, 8):
            saver.wait()
            begin = time.perf_counter()
            saver.save(step, state)
            times.append(time.perf_counter() - begin)
    record_property("seconds", times)
    print("seconds that a save of 300 MB held up:", times)
