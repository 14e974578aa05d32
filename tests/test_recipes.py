"""Accelerate and Lightning Fabric inside our ranks."""

import pytest
import torch


@pytest.mark.parametrize("case", ["accelerated", "fabricated"])
def test_both_ranks_end_with_the_same_weights(ranks, case):
    first, second = (torch.tensor(rank[case]) for rank in ranks)
    assert torch.equal(first, second)


@pytest.mark.parametrize("case", ["accelerate_untold", "fabric_untold"])
def test_a_library_that_does_not_know_its_rank_may_not_train(ranks, case):
    assert "takes this process for rank 0 of 1; it is rank 1 of 2" in ranks[1][case]
    assert "takes this process for rank 0 of 1; it is rank 0 of 2" in ranks[0][case]
