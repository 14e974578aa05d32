"""Write constraints.txt: the release that this environment has of everything that scalekit needs.

What was installed by hand stays out, and so does a build's label: `2.13.0+cpu` is pinned as `2.13.0`.
To move to newer releases: `.venv/bin/pip install --upgrade -e '.[dev]'`, `make test`, `make pins`.
"""

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

target = Path(__file__).resolve().parents[1] / "constraints.txt"
header = "# Written by `make pins`: what the tests run with. Anybody may install newer; CI does not.\n"


def walk(
    requirement: Requirement,  # What to follow
    found: dict[str, set[str]],  # Name -> extras already followed, filled in
) -> None:
    "Visit `requirement` and all that it needs on this machine"
    name = canonicalize_name(requirement.name)
    new = {"", *requirement.extras} - found.get(name, set())
    found.setdefault(name, set()).update(new)
    for text in (distribution(name).requires or []) if new else []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in new):
            walk(need, found)


def main() -> None:
    found: dict[str, set[str]] = {}
    for root in ("scalekit[dev]", "pip"):
        walk(Requirement(root), found)
    names = sorted(found.keys() - {"scalekit"})
    pins = [f"{name}=={Version(distribution(name).version).public}" for name in names]
    target.write_text(header + "\n".join(pins) + "\n")
    print(f"{target.name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
