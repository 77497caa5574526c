"""How many small changes of the code the tests notice.

    python -m tests.benchmarks.mutation [--sample 60 --seed 0 --only planners,cost,cache
                                         --workers 2 --json]

A mutant is the code with one operator or constant replaced: a sum by a difference, ``<`` by ``<=``,
``and`` by ``or``, a number by its successor. A seeded sample of all of them is tried in copies of
the tree: first with all test files that import the changed module, then with all tests of its
part. It is killed if one fails, or takes far too long; survivors are listed, some of which no test
could notice (a step that only saves time, a bound that is never reached).

Goal: 80 % killed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GOAL = 0.8
MOST_S = 400.0
"""Of one run of tests; the longest part takes two minutes on an idle core."""

PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "planners": (("planners",), ("tests/planners",)),
    "cost": (
        ("moesim/step.py", "moesim/cost.py", "moesim/link_cost.py", "moesim/communication.py",
         "moesim/calibrated_cost.py", "moesim/operators", "moesim/forward"),
        ("tests/step", "tests/forward", "tests/operators"),
    ),
    "cache": (("moesim/cache",), ("tests/cache",)),
}  # fmt: skip
"""Code and the tests that are to notice its changes."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class Mutant(NamedTuple):
    """A changed file.

    Attributes:
        part: Key of :data:`PARTS`.
        file: From the root.
        site: Number of the change among those of the file.
        what: Line, and what became of it.
    """

    part: str
    file: str
    site: int
    what: str


class _Change(ast.NodeTransformer):
    """Counts the places that can be changed, and changes one of them."""

    def __init__(self, chosen: int | None = None) -> None:
        self.chosen = chosen
        self.sites: list[str] = []

    def _here(self, line: int, what: str) -> bool:
        self.sites.append(f"line {line}: {what}")
        return len(self.sites) - 1 == self.chosen

    def _swapped(self, node: ast.AST, operator: ast.AST) -> ast.AST:
        other = SWAPS.get(type(operator))
        if other is None:
            return operator
        what = f"{type(operator).__name__} to {other.__name__}"
        return other() if self._here(getattr(node, "lineno", 0), what) else operator

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        node.op = self._swapped(node, node.op)  # type: ignore[assignment]
        return node

    visit_AugAssign = visit_BinOp  # type: ignore[assignment]

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        node.op = self._swapped(node, node.op)  # type: ignore[assignment]
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        node.ops = [self._swapped(node, operator) for operator in node.ops]  # type: ignore[misc]
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            changed: object = not node.value
        elif isinstance(node.value, int | float):
            changed = node.value + 1
        else:
            return node
        if self._here(node.lineno, f"{node.value!r} to {changed!r}"):
            return ast.copy_location(ast.Constant(changed), node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def _leave(self, node: ast.AST) -> ast.AST:
        return node

    # Messages and types decide nothing.
    visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = visit_arg = _leave


def mutants(parts: list[str]) -> Iterator[Mutant]:
    """All mutants of some parts."""
    for part in parts:
        for name in PARTS[part][0]:
            path = ROOT / name
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                found = _Change()
                found.visit(ast.parse(file.read_text(encoding="utf-8")))
                where = file.relative_to(ROOT).as_posix()
                yield from (Mutant(part, where, k, what) for k, what in enumerate(found.sites))


def main() -> None:
    """Try a sample and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    parts = words.only.split(",")
    every = list(mutants(parts))
    chosen = random.Random(words.seed).sample(every, min(words.sample, len(every)))
    survived: list[Mutant] = []

    def say(mutant: Mutant, killed: bool) -> None:
        if not killed:
            survived.append(mutant)
        if not words.json:
            fate = "killed" if killed else "SURVIVED"
            print(f"{fate:<9} {mutant.file} {mutant.what}", flush=True)

    _try_all(chosen, words.workers, say)
    tried = {part: sum(one.part == part for one in chosen) for part in parts}
    left = {part: sum(one.part == part for one in survived) for part in parts}
    score = 1 - len(survived) / len(chosen)
    if words.json:
        print(json.dumps({"mutants": len(every), "tried": tried, "survived": left,
                          "score": score, "goal": GOAL}))  # fmt: skip
    else:
        for part in parts:
            print(f"{part:<10}{tried[part] - left[part]:>5} of {tried[part]} killed")
        print(f"{score:.0%} of {len(chosen)} killed, of {len(every):,} possible (goal {GOAL:.0%})")
    sys.exit(0 if score >= GOAL else 6)


def _try_all(chosen: list[Mutant], workers: int, say: Callable[[Mutant, bool], None]) -> None:
    """Every mutant in one of the copies, after a look at whether tests pass without any."""
    copies: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(workers):
            copies.put(_copy(Path(folder) / str(number)))
        unchanged = copies.get()
        for part in sorted({mutant.part for mutant in chosen}):
            if not _passes(list(PARTS[part][1]), unchanged, ""):
                raise SystemExit(f"the tests of {part} fail, or take too long, without any change")
        copies.put(unchanged)

        def attempt(mutant: Mutant) -> None:
            copy = copies.get()
            try:
                say(mutant, _killed(mutant, copy))
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(attempt, chosen))


def _copy(place: Path) -> Path:
    """The tree as it stands, links kept, with ``moesim`` alone on a path of its own."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
    shutil.copytree(ROOT, place / "tree", symlinks=True, ignore=ignored)
    (place / "path").mkdir()
    (place / "path" / "moesim").symlink_to(place / "tree" / "moesim")
    return place


def _killed(mutant: Mutant, copy: Path) -> bool:
    file = copy / "tree" / mutant.file
    text = file.read_text(encoding="utf-8")
    changed = ast.fix_missing_locations(_Change(mutant.site).visit(ast.parse(text)))
    file.write_text(ast.unparse(changed), encoding="utf-8")
    try:
        near = _importing(mutant, copy)
        if near and _passes(near, copy, text) is False:
            return True
        return not _passes(list(PARTS[mutant.part][1]), copy, text)
    finally:
        file.write_text(text, encoding="utf-8")
        shutil.rmtree(copy / "numba", ignore_errors=True)


def _importing(mutant: Mutant, copy: Path) -> list[str]:
    """Test files that import the module, those of the part first."""
    module = "moesim." + mutant.file.removeprefix("moesim/").removesuffix(".py").replace("/", ".")
    pattern = re.compile(rf"\b{re.escape(module)}\b")
    files = sorted(
        (copy / "tree" / "tests").rglob("test_*.py"),
        key=lambda file: not file.is_relative_to(copy / "tree" / PARTS[mutant.part][1][0]),
    )
    return [
        file.relative_to(copy / "tree").as_posix()
        for file in files
        if pattern.search(file.read_text(encoding="utf-8"))
    ]


def _passes(tests: list[str], copy: Path, text: str) -> bool | None:
    """Whether tests pass in a copy, None if they take too long to tell.

    Those of a part are known to take less without a change; those that import a module are not.
    """
    # Machine code of changed compiled functions, and of all that call them, is made anew.
    fresh = {"NUMBA_CACHE_DIR": str(copy / "numba")} if "moesim.compiled" in text else {}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=copy / "tree",
            env=os.environ | fresh | {"PYTHONPATH": str(copy / "path")},
            capture_output=True,
            timeout=MOST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode == 0


if __name__ == "__main__":
    main()
