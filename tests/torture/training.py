"""Trainings on two ranks to which something happens: `python tests/torture/training.py [N [SEED [FAULT...]]]`

Each must end on every rank with the very bits of the undisturbed one, do again at most the steps since its
last checkpoint, and leave no process behind. Prints a seed to repeat it all; exits with 1 if one does not.
"""

import secrets
import sys
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import rank_faults
from rank_faults import FAULTS, INTERVAL, VARIANTS, Outcome, open_team


def torture(names: list[str], chance: Random) -> list[Outcome]:
    "Each of the faults in turn"
    with open_team() as team:
        expected = {variant: rank_faults.run_undisturbed(team, variant) for variant in VARIANTS}
        outcomes: list[Outcome] = []
        for number, name in enumerate(names, 1):
            variant = FAULTS[name].variant or chance.choice(VARIANTS)
            outcome = rank_faults.strike(team, name, variant, chance, expected[variant])
            outcomes.append(outcome)
            told = f"step {outcome.at}, {outcome.lost} done again, after {outcome.pause:.1f} s,"
            told += f" the whole {outcome.seconds:.1f} s:"
            print(f"{number:4} {name} ({variant}): {told} {'; '.join(outcome.wrong) or 'ok'}", flush=True)
            if outcome.wrong:
                keep = Path(f"torture-{time.time():.0f}.log")
                keep.write_text(team.log())
                print(f"     what was said is in {keep}")
        return outcomes


def main(words: list[str]) -> int:
    n, seed = int((words or ["100"])[0]), int(words[1]) if len(words) > 1 else secrets.randbelow(10**6)
    print(f"{n} faults, seed {seed}", flush=True)
    names = list(islice(cycle(words[2:] or rank_faults.list_faults()), n))
    chance = Random(seed)
    chance.shuffle(names)
    outcomes = torture(names, chance)
    bad = [one for one in outcomes if one.wrong]
    for name, count in Counter(one.fault for one in outcomes).items():
        print(f"  {count:3} {name}, {sum(one.fault == name for one in bad)} of them with a broken promise")
    lost, over = [one.lost for one in outcomes], sum(one.lost > INTERVAL for one in outcomes)
    print(f"steps done again: {median(lost):g} in the median, {max(lost)} at most")
    print(f"more than the {INTERVAL} of an interval, as a checkpoint was just being written: {over}")
    print(f"{len(outcomes)} faults, {len(bad)} broken promises")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
