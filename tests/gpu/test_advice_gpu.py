"""What advice says of a GPU, against the GPU. Not measured where there is none."""

import pytest
import torch
from workloads import WORKLOADS

from scalekit.footprint.estimate import estimate_memory
from scalekit.footprint.probe import largest_batch, probe_step
from scalekit.roof.distance import measure_limit

pytestmark = pytest.mark.gpu


def on_gpu(build):
    def build_there(batch_size):
        with torch.device("cuda"):
            return build(batch_size)

    return build_there


@pytest.mark.parametrize("name", ["MLP, Adam", "CNN, SGD with momentum", "transformer, AdamW"])
def test_an_estimate_is_within_its_band(name):
    build, (_, batch_size) = WORKLOADS[name]
    estimate = estimate_memory(build, device="cuda")
    reserved = probe_step(on_gpu(build), batch_size, "cuda")
    assert estimate.at(batch_size) * (1 - estimate.band) < reserved + 2**29 < estimate.at(batch_size) * 1.2


def test_the_largest_batch_runs():
    build = on_gpu(WORKLOADS["transformer, AdamW"][0])
    assert probe_step(build, largest_batch(build, "4 GB", "cuda"), "cuda") < 4e9


def test_a_training_stays_below_the_roof():
    found = measure_limit(on_gpu(WORKLOADS["MLP, Adam"][0]), 4096, device="cuda")
    assert 0 < found.share <= 1
