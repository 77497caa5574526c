"""Recipes of the public serving benchmark, out of the history of its repository.

InferenceX (https://github.com/SemiAnalysisAI/InferenceX, Apache-2.0) keeps the set-ups that it runs
every night in one file. A measured run names engine, lengths and concurrency, but often neither how
many workers there were nor whether they drafted; the recipe of that image, those lengths and that
concurrency does. Repeat with ``python -m moesim.calibrate.harness_extract CLONE OUT.csv``.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from moesim.calibrate.harness import COLUMNS, ENGINE_OF
from moesim.safe_io import write_atomic

__all__ = ["extract_recipes", "main"]

RECIPES = ".github/configs/nvidia-master.yaml"
LAST_DAY = "2026-05-10"


def extract_recipes(clone: Path, last_day: str = LAST_DAY) -> list[dict[str, object]]:
    """Every recipe that was ever in force, with the first and the last day that it was.

    Args:
        clone: Of the repository, with its history.
        last_day: Later versions are left out.
    """
    log = _git(clone, "log", "--format=%h %as", "--reverse", "--", RECIPES)
    found: dict[tuple[object, ...], dict[str, object]] = {}
    for line in log.splitlines():
        commit, day = line.split()
        if day > last_day:
            break
        for recipe in _recipes_of(yaml.safe_load(_git(clone, "show", f"{commit}:{RECIPES}"))):
            known = found.setdefault(tuple(recipe.values()), {**recipe, "first_day": day})
            known["last_day"] = day
    return sorted(found.values(), key=lambda row: [str(row[name]) for name in COLUMNS])


def _git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _recipes_of(document: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    for entry in document.values():
        if entry["framework"] not in ENGINE_OF:
            continue
        lengths = entry.get("seq-len-configs") or entry.get("scenarios", {}).get(
            "fixed-seq-len", []
        )
        for of in lengths:
            for point in of["search-space"]:
                yield {
                    "engine": ENGINE_OF[entry["framework"]],
                    "system": entry["runner"].split("-")[0],
                    "model": entry["model-prefix"],
                    "precision": entry["precision"],
                    "image": entry["image"].replace("#", "/"),
                    "isl": of["isl"],
                    "osl": of["osl"],
                    "concurrency": _concurrency(point),
                    "prefill": _workers(point.get("prefill")),
                    "decode": _workers(point.get("decode") or point),
                    "drafts": int(point.get("spec-decoding", "none") != "none"),
                }


def _concurrency(point: Mapping[str, Any]) -> str:
    listed = point.get("conc-list")
    if listed is None:
        listed, at = [], int(point["conc-start"])
        while at <= int(point["conc-end"]):
            listed.append(at)
            at *= 2
    return " ".join(str(value) for value in sorted(set(listed)))


def _workers(part: Mapping[str, Any] | None) -> str:
    """Such as ``5xtp8ep8dp``: workers, devices of one, expert parallelism, attention by data."""
    if part is None:
        return ""
    data_parallel = "dp" if part.get("dp-attn") else ""
    count = part.get("num-worker", 1)
    return f"{count}xtp{part['tp']}ep{part.get('ep') or 1}{data_parallel}"


def main(arguments: list[str]) -> None:
    """Write the recipes of a clone as a table."""
    clone, target = Path(arguments[0]), Path(arguments[1])
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(extract_recipes(clone))
    write_atomic(target, text.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
