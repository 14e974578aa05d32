"""Runs on their way to W&B, and what may happen: `python tests/torture/tracking.py [N [SEED [FAULT...]]]`

After a last sync the server must hold exactly the rows of the bundles, each once and in order, and no process
may be left. The server is the project's own. Prints a seed to repeat it all; exits with 1 if one is broken.
"""

import secrets
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from tracking_faults import FAULTS, strike


def main(words: list[str]) -> int:
    n, seed = int((words or ["50"])[0]), int(words[1]) if len(words) > 1 else secrets.randbelow(10**6)
    print(f"{n} faults, seed {seed}", flush=True)
    names = list(islice(cycle(words[2:] or FAULTS), n))
    Random(seed).shuffle(names)
    broken: list[str] = []
    for number, name in enumerate(names, 1):
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="sk-") as folder:
            wrong = strike(name, Random(seed * 1000 + number), Path(folder) / "disk")
        broken += [name] * bool(wrong)
        print(f"{number:4} {name}, {time.monotonic() - start:.0f} s: {'; '.join(wrong) or 'ok'}", flush=True)
    for name, count in Counter(names).items():
        print(f"  {count:3} {name}, {broken.count(name)} of them with a broken promise")
    print(f"{n} faults, {len(broken)} broken promises")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
