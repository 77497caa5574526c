"""What a plan's validation runs: every device's experts with their tokens, at a stated scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.calibrate.measurements import Workload
from moesim.cluster import Cluster
from moesim.communication import CommForm, count_copies
from moesim.model import ModelSpec
from moesim.operators.cpu_experts import ExpertShape
from moesim.placement import Placement
from moesim.planners.validation import RunScale
from moesim.workload import Batches, Phase

__all__ = [
    "DeviceLoads",
    "RunOrder",
    "choose_scale",
    "device_loads",
    "fit_loads",
    "scaled_rows",
    "workload",
]

EXPERT_BYTES = 2**21
"""Weights of an expert that a CPU runs: a layer of hundreds then fits the pool many times."""
LEAST_WIDTH = 64
CALL_FLOPS = 3e8
"""Of the mean device on a CPU: some 5 ms, long against a clock and short against a budget."""
LEAST_ROWS = 16
"""Mean rows of an expert below which they are not divided any further: integers get coarse."""

MOST_LAYERS = 512
"""Layers of batches that are prepared; no machine gets through more in minutes."""

FIT_LOADS = 40
"""Other loads that the cost model is fitted on."""
FIT_REACH = 3.0
"""They reach from the mean rows over this to the mean rows times this."""


@dataclass(frozen=True)
class DeviceLoads:
    """The loads of all devices.

    Attributes:
        batch: [N] batch of each layer that may be run, in the order to run them.
        layer: [N] row of the layer.
        loads: [U] distinct rows of the active experts of a device, in descending order.
        load_of: [P, N, G] index into them; −1 for a device without tokens.
    """

    batch: np.ndarray
    layer: np.ndarray
    loads: tuple[tuple[int, ...], ...]
    load_of: np.ndarray

    def first(self, count: int) -> DeviceLoads:
        """The first ``count`` layers of batches."""
        return DeviceLoads(
            self.batch[:count], self.layer[:count], self.loads, self.load_of[:, :count]
        )


@dataclass(frozen=True)
class RunOrder:
    """What is run in which order: however little time there is, it holds something of both.

    The loads of the first layer of a batch, then the others that the cost model is fitted on, then
    the loads of the rest. A layer's loads are numbered before those of later layers.
    """

    loads: DeviceLoads
    others: tuple[tuple[int, ...], ...]

    @property
    def lead(self) -> int:
        """Loads of the first layer."""
        return int(self.loads.load_of[:, 0].max()) + 1

    @property
    def plan(self) -> tuple[tuple[int, ...], ...]:
        """All loads in the order to run them."""
        return (*self.loads.loads[: self.lead], *self.others, *self.loads.loads[self.lead :])

    def fitted_on(self, timed: int) -> tuple[tuple[int, ...], ...]:
        """Others among the first ``timed`` of the plan."""
        return self.others[: max(0, timed - self.lead)]

    def measured(self, timed: int) -> DeviceLoads:
        """The layers of batches all of whose loads are among the first ``timed`` of the plan."""
        own = min(timed, self.lead) + max(0, timed - self.lead - len(self.others))
        missing = np.flatnonzero((self.loads.load_of >= own).any(axis=(0, 2)))
        return self.loads.first(int(missing[0]) if len(missing) else len(self.loads.batch))

    def of_others(self, samples_s: np.ndarray) -> np.ndarray:
        """[R, others] samples."""
        return samples_s[:, self.lead : self.lead + len(self.others)]

    def of_loads(self, samples_s: np.ndarray) -> np.ndarray:
        """[R, loads] samples."""
        behind = self.lead + len(self.others)
        return np.concatenate([samples_s[:, : self.lead], samples_s[:, behind:]], axis=1)


def choose_scale(model: ModelSpec, device_rows: float, expert_rows: float, dtype: str) -> RunScale:
    """Widths and rows that a CPU can run hundreds of times.

    Args:
        model: Whose experts they are.
        device_rows: Mean rows of a device in a layer.
        expert_rows: Mean rows of an active expert.
        dtype: Number type that is run.
    """
    width = 1
    hidden, inter = model.expert_input_size, model.expert_width
    while float(_shape(hidden, inter, width, dtype).weight_bytes) > EXPERT_BYTES:
        if min(hidden, inter) // (2 * width) < LEAST_WIDTH:
            break
        width *= 2
    row_flops = float(_shape(hidden, inter, width, dtype).row_flops)
    rows = 1
    while device_rows / rows * row_flops > CALL_FLOPS and expert_rows / (2 * rows) >= LEAST_ROWS:
        rows *= 2
    return RunScale(_narrow(hidden, width), _narrow(inter, width), width, rows, dtype)


def device_loads(
    batches: Batches,
    placements: Sequence[Placement],
    cluster: Cluster,
    comm: CommForm,
    phase: Phase,
    rows_divisor: int,
    seed: int,
) -> DeviceLoads:
    """Rows of the experts on every device, for every placement, layer and batch.

    Layers of batches come in a random order: however many of them there is time for, they are a
    sample of all. Devices with the same rows share one load, whichever experts they hold.
    """
    tables = []
    for placement in placements:
        tokens = count_copies(batches, placement, cluster, comm, phase).slot_tokens
        shape = (-1, placement.devices, placement.slots_per_device)
        tables.append(scaled_rows(tokens, rows_divisor).reshape(shape))
    order = np.random.default_rng(seed).permutation(len(tables[0]))[:MOST_LAYERS]
    count = len(order)
    known: dict[tuple[int, ...], int] = {}
    load_of = np.full((len(placements), count, placements[0].devices), -1)
    for n, place in enumerate(order):
        for p, table in enumerate(tables):
            for g, rows in enumerate(table[place]):
                load = tuple(sorted((int(r) for r in rows if r), reverse=True))
                if load:
                    load_of[p, n, g] = known.setdefault(load, len(known))
    layers = batches.layers
    return DeviceLoads(order // layers, order % layers, tuple(known), load_of)


def scaled_rows(tokens: np.ndarray, divisor: int) -> np.ndarray:
    """Tokens over the divisor, at least 1 where there are any."""
    rows = np.rint(tokens / divisor).astype(np.int64)
    return np.where(tokens > 0, np.maximum(rows, 1), 0)


def fit_loads(loads: DeviceLoads, experts: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Loads that the cost model is fitted on; none of them is one that is validated.

    Experts and rows are drawn on logarithmic scales around those of the devices, even and uneven.

    Args:
        loads: Of the devices.
        experts: Slots of a device.
        seed: Of the draw.
    """
    rng = np.random.default_rng((seed, 1))
    rows = np.array([row for load in loads.loads for row in load], np.float64)
    middle = float(np.exp(np.log(rows).mean()))
    found: dict[tuple[int, ...], None] = {}
    taken = set(loads.loads)
    tries = 0
    while len(found) < FIT_LOADS and tries < 100 * FIT_LOADS:
        tries += 1
        active = int(np.exp(rng.uniform(0, np.log(2 * experts + 1))))
        mean = middle * np.exp(rng.uniform(-1, 1) * np.log(FIT_REACH))
        # Devices never have more rows in all than the most loaded ones by far.
        mean = min(mean, 1.5 * max(sum(load) for load in loads.loads) / active)
        spread = rng.uniform(0, 0.8)
        each = np.rint(mean * np.exp(spread * rng.standard_normal(active)))
        load = tuple(sorted((int(max(1, r)) for r in each), reverse=True))
        if load not in taken:
            found[load] = None
    return tuple(found)


def workload(scale: RunScale, load: tuple[int, ...]) -> Workload:
    """A load as what the machine is asked to time."""
    return Workload(
        kind="experts",
        dtype=scale.dtype,
        hidden=scale.hidden,
        inter=scale.inter,
        expert_rows=load,
    )


def _shape(hidden: int, inter: int, divisor: int, dtype: str) -> ExpertShape:
    return ExpertShape(_narrow(hidden, divisor), _narrow(inter, divisor), dtype=dtype)


def _narrow(width: int, divisor: int) -> int:
    """A width over the divisor as a multiple of 16, which matrix kernels take."""
    return width if divisor == 1 else max(16, round(width / divisor / 16) * 16)
