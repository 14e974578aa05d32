"""Accelerate and Lightning Fabric inside our ranks."""

import pytest
import torch
from two_ranks import run_ranks


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    cases = "accelerate_untold", "fabric_untold", "accelerated", "fabricated"
    return run_ranks(tmp_path_factory.mktemp("ranks"), *cases)


@pytest.mark.parametrize("case", ["accelerated", "fabricated"])
def test_both_ranks_end_with_the_same_weights(told, case):
    first, second = (torch.tensor(rank[case]) for rank in told)
    assert torch.equal(first, second)


@pytest.mark.parametrize("case", ["accelerate_untold", "fabric_untold"])
def test_a_library_that_does_not_know_its_rank_may_not_train(told, case):
    assert "takes this process for rank 0 of 1; it is rank 1 of 2" in told[1][case]
    assert "takes this process for rank 0 of 1; it is rank 0 of 2" in told[0][case]
