"""``traces/likeness.md`` from ``traces/likeness.json``: the residuals as tables.

python -m tests.benchmarks.likeness_table
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from moesim.traces import likeness
from moesim.traces.likeness import Figure, Likeness, LikenessFile, likenesses

MAIN = ("load-deviation", "srp-16", "sch-4", "sch-16", "sch-64", "sch-256")
HEAD = """# Synthetic traces like real models

`moesim trace synth --like NAME --out DIR` writes routing that nobody recorded, with statistics like
those published of a real model. This page says how close they come. It is made from
`likeness.json` by `python -m tests.benchmarks.likeness_table`; that file is made by
`python -m tests.benchmarks.likeness --fit --write`.

All models have the same process with four fitted parameters. A request ranks a set of topics at
random and draws its topics from that ranking with geometric shares (`request_topics`: their
effective number); a token keeps the topic of the token before it with probability `locality`; a
topic prefers some experts in every layer (`affinity`); experts differ in overall popularity
(`skew`, a power of the rank unless the model's row says exponential). Since a topic holds for all
layers of a token, experts of neighbouring layers go together.

What these traces do not show: requests share fewer experts with one another than measured ones do,
so the union of a large batch is too large, and so are the loads of a cache that serves one (the
rows `union-` and `batch-` below).
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    digits = 2 if abs(figure.published) < 10 else 1
    return f"{figure.published:.{digits}f} ({figure.residual:+.{digits}f})"


def by_name(like: Likeness) -> dict[str, Figure]:
    return {f.statistic: f for f in like.figures}


def parameters(known: LikenessFile) -> list[str]:
    names = ("skew", "affinity", "request_topics", "locality", "domain_shift")
    rows = []
    for name, like in known.models.items():
        values = [f"{like.parameters[p]:.3g}" for p in names]
        values[0] += " exponential" if like.popularity == "exponential" else ""
        shape = f"{like.layers} × {like.experts}, top-{like.top_k}"
        rows.append([f"`{name}`", shape, *values])
    return table(["model", "layers × experts", *(f"`{n}`" for n in names)], rows)


def policies(figures: dict[str, Figure]) -> list[str]:
    slots = (8, 16, 32, 64)
    rows = [
        [policy, *(cell(figures[f"{policy}-{c}"]) for c in slots)]
        for policy in ("random", "lfu", "lru", "oracle")
    ]
    return table(["slots per layer", *map(str, slots)], rows)


def others(known: LikenessFile) -> list[str]:
    rows = []
    for name, like in known.models.items():
        for f in like.figures:
            policy = f.statistic.partition("-")[0]
            if f.statistic not in MAIN and policy not in ("random", "lfu", "lru", "oracle"):
                digits = 2 if abs(f.published) < 10 else 1
                numbers = (f"{v:.{digits}f}" for v in (f.published, f.generated or 0))
                rows.append([f"`{name}`", f"`{f.statistic}`", *numbers, f.role])
    return table(["model", "statistic", "published", "generated", ""], rows)


def markdown(known: LikenessFile) -> str:
    """The page."""
    main = [
        [f"`{name}`", *(cell(by_name(like).get(s)) for s in MAIN)]
        for name, like in known.models.items()
        if "srp-16" in by_name(like)
    ]
    lines = [HEAD, "Published figures in per cent, and in brackets generated less published:", ""]
    lines += table(["model", *(f"`{s}`" for s in MAIN)], main)
    lines += ["Hit rates of Qwen3-30B-A3B; `random` and 32 slots were not fitted:", ""]
    lines += policies(by_name(known.models["qwen3-30b-a3b"]))
    lines += ["Other figures:", ""]
    lines += others(known)
    lines += ["Parameters:", ""]
    lines += parameters(known)
    lines += ["What no published figure determines is assumed:", ""]
    lines += [f"- `{name}`: {why}" for name, why in known.assumptions.items()]
    lines += ["", "Statistics:", ""]
    lines += [f"- `{name}`: {meaning}" for name, meaning in known.statistics.items()]
    lines += ["", "Sources:", ""]
    lines += [f"- {source}" for source in known.sources.values()]
    return "\n".join(lines) + "\n"


def main() -> int:
    path = Path(likeness.__file__).with_suffix(".md")
    path.write_text(markdown(likenesses()), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
