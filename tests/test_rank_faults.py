"""Something happens to a training on two ranks; the whole form is `tests/torture/training.py`."""

from random import Random

import pytest
from rank_faults import INTERVAL, list_faults, open_team, run_undisturbed, strike

FAULTS = ("kill -9 of rank 0", "kill -9 of a worker", "disk full", "byte flipped")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_whatever_happens_to_it_a_training_ends_with_the_bits_of_the_undisturbed_one():
    chance = Random(5)
    with open_team() as team:
        expected = run_undisturbed(team, "tensors")
        for name in FAULTS:
            if name in list_faults():  # only root can fill a disk
                outcome = strike(team, name, "tensors", chance, expected)
                assert outcome.wrong == [], outcome
                assert outcome.lost < 2 * INTERVAL, outcome  # a checkpoint may be being written
