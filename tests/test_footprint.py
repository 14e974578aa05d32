"""The memory of a step, found without running it, against steps that ran."""

import pytest
import torch
from workloads import WORKLOADS

from scalekit.footprint import tracing
from scalekit.footprint.estimate import estimate_memory
from scalekit.footprint.probe import PROBED_BAND, calibrate, largest_batch
from scalekit.ranks.world import World

SMALL = 16  # Samples: a step that takes no time


@pytest.fixture(scope="module", params=WORKLOADS)
def workload(request):
    return WORKLOADS[request.param][0]


def count_for_real(build, batch_size):
    "Highest sum of storages over two real steps [bytes]"
    with torch.random.fork_rng(devices=[]), tracing._LiveStorages() as storages:
        step = build(batch_size)
        step()
        step()
    return max(storages.levels)


def test_a_trace_holds_what_a_real_step_holds(workload):
    "To 1 %: on fake tensors a scalar may live one operation longer"
    assert tracing.trace_step(workload, SMALL).peak == pytest.approx(
        count_for_real(workload, SMALL), rel=0.01
    )


def test_an_estimate_is_a_trace_at_sizes_that_were_not_traced(workload):
    estimate = estimate_memory(workload)
    assert estimate.footprint.follows
    for batch_size in (5, 700):
        peak = tracing.trace_step(workload, batch_size).peak
        assert estimate.at(batch_size) == pytest.approx(peak, rel=1e-6)


def test_checkpointing_is_seen():
    kept, again = (estimate_memory(WORKLOADS[name][0]) for name in list(WORKLOADS)[3::2])
    deep = again.footprint.parts(512)["activations and gradients"] / 6  # a layer
    flat = kept.footprint.parts(512)["activations and gradients"] / 2
    assert deep < flat / 2


def test_tracing_leaves_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    estimate_memory(WORKLOADS["MLP, SGD"][0])
    assert torch.equal(torch.rand(3), expected)


class _Others:
    "Ranks that found less and more"

    def gather(self, key, value, timeout=None):
        return [value, b"17", b"100000"]


def test_ranks_agree_on_the_smallest_answer(monkeypatch):
    world = World(0, 3, torch.device("cpu"), control=_Others())
    monkeypatch.setattr("scalekit.footprint.probe.current_world", lambda: world)
    assert largest_batch(WORKLOADS["MLP, SGD"][0], "2 GB", probe=False) == 17


def test_a_probe_widens_an_estimate_and_never_narrows_it(monkeypatch):
    estimate = estimate_memory(WORKLOADS["MLP, SGD"][0])
    for measured, ratio in ((1.25, 1.25), (0.5, 1.0)):
        monkeypatch.setattr(
            "scalekit.footprint.probe.probe_step",
            lambda build, n, device, measured=measured: measured * estimate.at(n),
        )
        assert calibrate(estimate, None, "1 GB").ratio == pytest.approx(ratio)


def test_a_probe_is_made_too_where_the_weights_take_most_of_the_memory(monkeypatch):
    estimate, tried = estimate_memory(WORKLOADS["MLP, Adam"][0]), []
    monkeypatch.setattr(
        "scalekit.footprint.probe.probe_step",
        lambda build, n, device: tried.append(n) or 1.2 * estimate.at(n),
    )
    one = estimate.at(1)
    for memory, most in ((4 * one, 4 * one / 3), (2 * one, 4 * one / 3), (1.1 * one, one)):
        found = calibrate(estimate, None, int(memory))
        assert (found.ratio, found.band) == (pytest.approx(1.2), PROBED_BAND)
        assert tried[-1] >= 1 and estimate.at(tried[-1]) <= most
    assert calibrate(estimate, None, int(one / 2)) == estimate and len(tried) == 3
