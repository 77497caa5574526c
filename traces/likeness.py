"""Synthetic traces like those of real models: parameters, and how close they come.

``likeness.json`` holds, for every model whose routing statistics somebody has published, its shape,
the published figures, the parameters of the generator fitted to them, and what the generator shows
instead. ``python -m tests.benchmarks.likeness --fit --write`` makes the parameters and the
generated figures anew from the rest of the file.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Literal

from pydantic import Field

from moesim.errors import UsageError
from moesim.safe_io import read_json
from moesim.schema import Document
from moesim.traces.synthetic_spec import GeneratorSpec

__all__ = [
    "Figure",
    "Likeness",
    "LikenessFile",
    "find_likeness",
    "likeness_report",
    "likenesses",
]

FILE = "likeness.json"
# The published statistics are of samples of 512 tokens.
REQUEST = {"request_tokens": 512, "length_spread": 0.0, "reuse": 0.0}


class Figure(Document):
    """A published statistic of a model, and the same of its synthetic trace.

    Attributes:
        statistic: Such as ``sch-16``; ``statistics`` in the file says what each means.
        published: In the statistic's unit, per cent unless its meaning says otherwise.
        generated: Mean over seeds; None before the first fit.
        spread: Largest less smallest over the seeds.
        role: Whether the parameters were fitted to it.
        source: Key of ``sources`` in the file.
    """

    statistic: str
    published: float
    generated: float | None = None
    spread: float | None = None
    role: Literal["fitted", "held out"]
    source: str

    @property
    def residual(self) -> float:
        """Generated less published."""
        return (self.generated or 0.0) - self.published


class Likeness(Document):
    """What is known of a model's routing, and the generator's parameters.

    Attributes:
        layers: MoE layers.
        moe_layers: [L] their indices among the model's layers; empty for all.
        experts: Routed experts per layer.
        top_k: Routed experts per token.
        groups: Groups of experts, if routing is limited to some of them.
        groups_per_token: Of them, how many may serve a token.
        shape_source: Where the shape is from.
        popularity: How the popularity of experts falls with their rank.
        borrow: Model whose locality is assumed to hold for this one too.
        fit: Parameters that were fitted to the figures.
        parameters: Of :class:`~moesim.traces.synthetic_spec.GeneratorSpec`.
        figures: Published and generated statistics.
    """

    layers: int
    moe_layers: tuple[int, ...] = ()
    experts: int
    top_k: int
    groups: int = 1
    groups_per_token: int = 1
    shape_source: str
    popularity: Literal["zipf", "exponential"] = "zipf"
    borrow: str | None = None
    fit: tuple[str, ...]
    parameters: dict[str, float] = Field(default_factory=dict)
    figures: tuple[Figure, ...]

    def spec(self, name: str) -> GeneratorSpec:
        """What the generator is asked for."""
        shape = self.model_dump(
            include={"layers", "moe_layers", "experts", "top_k", "groups", "groups_per_token"}
        )
        data = {"model": f"like {name} (synthetic)", **shape, **REQUEST, **self.parameters}
        data["popularity"] = self.popularity
        return GeneratorSpec.parse(data)

    def sources(self, assumptions: dict[str, str]) -> dict[str, str]:
        """For the shape and every parameter: what it was fitted to, or that it is assumed."""
        statistics = ", ".join(f.statistic for f in self.figures if f.role == "fitted")
        sources = {"shape": self.shape_source}
        for parameter in self.parameters:
            if parameter in self.fit:
                sources[parameter] = f"fitted, all of {', '.join(self.fit)} together, to the "
                sources[parameter] += f"published {statistics}"
            elif parameter in assumptions:
                sources[parameter] = f"assumed: {assumptions[parameter]}"
            else:
                sources[parameter] = f"assumed as in {self.borrow}"
        return sources


class LikenessFile(Document):
    """The whole file.

    Attributes:
        statistics: Meaning and unit of each statistic.
        sources: Where published figures are from.
        assumptions: Parameters that no published figure determines, and why they are as they are.
        models: By name.
    """

    schema_id: ClassVar[str] = "moesim.likeness/1"

    statistics: dict[str, str]
    sources: dict[str, str]
    assumptions: dict[str, str]
    models: dict[str, Likeness]


@cache
def likenesses() -> LikenessFile:
    """The file, read once."""
    path = files("moesim.traces") / FILE
    return LikenessFile.parse(read_json(str(path)), file=str(path))


def find_likeness(name: str) -> Likeness:
    """The likeness of that name.

    Raises:
        UsageError: If there is none.
    """
    models = likenesses().models
    if name not in models:
        raise UsageError(
            f"nothing is known of the routing of {name!r}\nfix: choose from {', '.join(models)}"
        )
    return models[name]


def likeness_report(name: str) -> dict[str, Any]:
    """Figures of a likeness with residuals and sources, as they stand in JSON and manifests."""
    known = likenesses()
    return {
        "model": name,
        "figures": [
            {
                **figure.model_dump(mode="json"),
                "residual": round(figure.residual, 3),
                "source": known.sources[figure.source],
            }
            for figure in find_likeness(name).figures
        ],
    }
