"""An iteration under a balancing system, averaged over iterations whose loads drift.

Attention is data parallel, a layer's experts lie over all devices. Per layer:

    forward    copies to experts, their work on the slowest device, results back
    backward   the same ways for gradients, both gradients' work
    sparse collectives: what the attention before (forward) or after (backward) does not hide

Dense gradients are summed over all devices after the passes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moesim.communication import link_time
from moesim.errors import InfeasibleError, UsageError
from moesim.forward.machine import Machine
from moesim.forward.pricing import price_ops
from moesim.forward.work import OUTPUT_BYTES, ExpertWork, MoveWork, Op
from moesim.model import ModelSpec
from moesim.training.balance.dispatch import dispatch, pack_slots
from moesim.training.balance.materialise import overlap_degree
from moesim.training.balance.memory import (
    GRADIENT,
    STATE,
    WEIGHT,
    ExpertMemory,
    expert_memory,
    layer_bytes,
    mean_memory,
)
from moesim.training.balance.outcome import BalancedStep, Balancing
from moesim.training.balance.plans import HISTORY, Plan, PlanContext, make_plan
from moesim.training.calls import Call, backward
from moesim.training.layer import TrainingShape, check_model, forward_calls
from moesim.training.layout import TrainingLayout
from moesim.training.links import shared_links
from moesim.training.memory import (
    GRADIENT_BYTES,
    OPTIMIZER_BYTES,
    WEIGHT_BYTES,
)
from moesim.training.outcome import PricedCall
from moesim.training.reduction import ADAM_BYTES, sync_s
from moesim.training.simulate import price_calls
from moesim.units import format_bytes

__all__ = ["simulate_balanced"]


def simulate_balanced(
    model: ModelSpec,
    machine: Machine,
    layout: TrainingLayout,
    loads: np.ndarray,
    balancing: Balancing,
) -> BalancedStep:
    """Price iterations under a system.

    Args:
        model: Sizes; every layer of one kind.
        machine: Devices and links.
        layout: Data parallel attention (a group of one), experts over all devices, no pipeline.
        loads: [I, L, E] copies per iteration; the first are only seen, the last ``samples`` priced.
        balancing: The system.

    Raises:
        UsageError: If the layout is another, or there are too few iterations.
        InfeasibleError: If a device's memory does not hold what it owns.
    """
    check_model(model)
    _check(model, layout, loads, balancing)
    run = _Run(model, machine, layout, balancing)
    return run.price(loads)


def _check(
    model: ModelSpec, layout: TrainingLayout, loads: np.ndarray, balancing: Balancing
) -> None:
    if not model.moe_layers or layout.group != 1 or layout.pp != 1 or layout.ep != layout.devices:
        raise UsageError(
            f"--system {balancing.system} balances experts over all devices of data parallel "
            "attention\nfix: leave out --tp, --sp-attention, --pp, --ep and --expert-tp, and "
            "choose a model with experts"
        )
    if model.experts % layout.devices:
        raise UsageError(
            f"the {model.experts} experts of {model.name} do not divide over {layout.devices} "
            "devices\nfix: use another --cluster"
        )
    if layout.micro_batches != 1:
        raise UsageError(
            f"--system {balancing.system} is simulated with one micro-batch per iteration\n"
            f"fix: pass --global-batch {layout.dp * layout.micro_batch}"
        )
    if len(loads) < balancing.samples + HISTORY:
        raise UsageError(
            f"{len(loads)} iterations of loads are too few: {HISTORY} to learn from and "
            f"{balancing.samples} to price\nfix: pass more"
        )


class _Run:
    """Everything that does not change from iteration to iteration."""

    def __init__(
        self, model: ModelSpec, machine: Machine, layout: TrainingLayout, balancing: Balancing
    ) -> None:
        self.model, self.machine, self.layout, self.balancing = model, machine, layout, balancing
        self.cluster = machine.cluster
        self.links = shared_links(self.cluster, machine.links)
        self.node_of = self.cluster.domain_of_device
        self.expert_bytes = WEIGHT_BYTES * float(model.expert_parameters)
        self.token_bytes = model.expert_input_size * OUTPUT_BYTES
        even = np.full((1, layout.devices, model.experts // layout.devices), 1.0)
        even *= layout.own_tokens * layout.devices * model.copies_per_token / model.experts
        scores = balancing.scores_in_memory
        shape = TrainingShape(model, layout, even, alltoall=True, scores_in_memory=scores)
        self.activation_bytes = layer_bytes(shape) * model.layers
        calls = forward_calls(shape)
        self.forward = price_calls(calls, machine, balancing.slowdown)
        self.backward = price_calls(backward(calls, "none"), machine, balancing.slowdown)
        layers = len(model.moe_layers)
        self.windows = [
            _seconds(way, lambda c: c.block == "attention" and not c.communicates) / layers
            for way in (self.forward, self.backward)
        ]
        ways = (self.forward, self.backward)
        self.other_s = sum(
            _seconds(way, lambda c: not c.communicates and not _of_experts(c)) for way in ways
        )
        # One layer's experts under even loads: what a copy costs in a plan's cost model.
        busiest = float(even.sum(axis=-1).max())
        self.copy_s = sum(_seconds(way, _of_experts) for way in ways) / layers / busiest
        near = self.links.domain_devices
        rate = self.links.out_bytes_per_s * near or self.links.up_bytes_per_s
        self.hot = min(overlap_degree(self.windows[0], rate, self.expert_bytes), model.experts)
        own = model.experts // layout.devices
        parameters = model.total_parameters - model.parameters.routed_experts
        each = WEIGHT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES
        self.dense_bytes = float(parameters * each)
        self.context = PlanContext(
            self.node_of,
            self.expert_bytes,
            self.hot,
            min(self.hot, self._room(layers * own)) if balancing.room is None else balancing.room,
            3 * own if balancing.slots is None else balancing.slots,
            self.layers_s,
        )

    def _room(self, owned: int) -> int:
        """m: copies of one layer that memory is left for.

        Raises:
            InfeasibleError: If there is none for what a device owns.
        """
        model, parameters = self.model, self.model.expert_parameters
        kept = WEIGHT * (1 if self.balancing.system == "hecate-rm" else len(model.moe_layers))
        needed = owned * parameters * (WEIGHT + GRADIENT + STATE)
        needed += self.dense_bytes + self.activation_bytes
        available = self.machine.device.memory_bytes
        if needed > available:
            raise InfeasibleError(
                f"{model.name} does not fit on {self.cluster.name}: a device needs "
                f"{format_bytes(needed)} ({format_bytes(self.dense_bytes)} dense, "
                f"{format_bytes(self.activation_bytes)} activations) and has "
                f"{format_bytes(available)}\n"
                "fix: use more devices, or a smaller --micro-batch or --sequence"
            )
        return int((available - needed) / (parameters * (kept + GRADIENT)))

    def seconds(self, sent_bytes: np.ndarray) -> np.ndarray:
        """[...] of transfers [..., G, G], each alone on the links."""
        return np.where(
            sent_bytes.any(axis=(-2, -1)), link_time(sent_bytes, self.cluster).seconds, 0.0
        )

    def layers_s(self, plan: Plan, loads: np.ndarray) -> np.ndarray:
        """[L] seconds of layers, forward and backward, roughly: even kernels, nothing hidden."""
        went = dispatch(loads, plan.held, self.node_of)
        ways = 4 * self.seconds(went.copies * self.token_bytes)
        work = went.slot_tokens.sum(axis=-1).max(axis=-1) * self.copy_s
        return ways + work + self.seconds(plan.gather) + self.seconds(plan.reduce)

    def price(self, loads: np.ndarray) -> BalancedStep:
        """Plan every iteration, price the last ones."""
        balancing, layout = self.balancing, self.layout
        first = len(loads) - balancing.samples
        # Hecate re-shards every 100 iterations where others rearrange every 10 (section 4.1).
        interval = balancing.interval * (10 if balancing.system.startswith("hecate") else 1)
        plan: Plan | None = None
        slots, sums, balance, memory, moves = [], np.zeros(4), [], [], []
        for iteration in range(HISTORY, len(loads)):
            if iteration < first and not balancing.system.startswith(("smart", "flex", "hec")):
                continue
            rearrange = plan is not None and (iteration - HISTORY) % interval == 0
            if plan is not None and not rearrange and iteration < first:
                continue
            plan = make_plan(
                balancing.system, loads[:iteration], loads[iteration], plan, self.context,
                rearrange=rearrange,
            )  # fmt: skip
            if rearrange:
                moves.append(float(self.seconds(plan.moved[None])[0]))
            if iteration < first:
                continue
            went = dispatch(loads[iteration], plan.held, self.node_of)
            slots.append(pack_slots(went.slot_tokens, plan.held))
            load = went.slot_tokens.sum(axis=-1)
            balance.append(float((load.mean(axis=-1) / load.max(axis=-1)).mean()))
            sums += self._transfers(plan, went.copies)
            memory.append(self._memory(plan))
        alltoall_s, sparse_s, exposed_s, sparse_bytes = sums / balancing.samples
        moved_s = float(np.mean(moves)) / interval if moves else 0.0
        experts_s, calls = self._experts(slots)
        reduce_s, optimizer_s = self._ends(plan)
        return BalancedStep(
            self.model, self.machine, layout, balancing, self.other_s, float(alltoall_s),
            experts_s, float(sparse_s), float(exposed_s), moved_s, reduce_s, optimizer_s,
            self.hot, float(np.mean(balance)), float(sparse_bytes), mean_memory(memory),
            self.dense_bytes, self.activation_bytes, calls,
        )  # fmt: skip

    def _transfers(self, plan: Plan, copies: np.ndarray) -> np.ndarray:
        """Seconds of all-to-alls, of sparse collectives alone and exposed; their bytes."""
        there = self.seconds(copies * self.token_bytes)
        back = self.seconds(copies.transpose(0, 2, 1) * self.token_bytes)
        gather, reduce = self.seconds(plan.gather), self.seconds(plan.reduce)
        behind = gather * plan.again + reduce
        alone = gather + behind
        exposed = alone
        if plan.hidden:
            exposed = np.maximum(gather - self.windows[0], 0)
            exposed = exposed + np.maximum(behind - self.windows[1], 0)
        sent = plan.gather.sum() * (1 + plan.again) + plan.reduce.sum()
        return np.array([2 * (there + back).sum(), alone.sum(), exposed.sum(), sent])

    def _experts(self, slots: list[np.ndarray]) -> tuple[float, tuple[PricedCall, ...]]:
        """Seconds of all layers' experts, forward and backward, mean over iterations."""
        widest = max(table.shape[-1] for table in slots)
        tables = [np.pad(t, ((0, 0), (0, 0), (0, widest - t.shape[-1]))) for t in slots]
        model, layers = self.model, len(self.model.moe_layers)
        work = ExpertWork(
            slot_tokens=np.concatenate(tables),
            hidden=model.expert_input_size,
            width=model.expert_width,
            matrices=model.expert_matrices,
            dtype="bfloat16",
            weight_bytes=2.0,
            activation_bytes=2.0,
            arithmetic="bf16",
            group_tokens=self.layout.group_tokens,
            top_k=model.copies_per_token,
            sees_group=False,
        )
        calls = (Call(Op("moe.experts", work, layers), "moe"),)
        slowdown = self.balancing.slowdown
        priced = price_calls(calls, self.machine, slowdown)
        priced += price_calls(backward(calls, "none"), self.machine, slowdown)
        others = [
            c for c in (*self.forward, *self.backward)
            if not c.call.communicates and not _of_experts(c.call)
        ]  # fmt: skip
        return _seconds(priced, lambda _: True), (*others, *priced)

    def _ends(self, plan: Plan | None) -> tuple[float, float]:
        """Seconds of dense gradients' sum over all devices, and of Adam."""
        parameters = self.model.total_parameters - self.model.parameters.routed_experts
        near = self.links.domain_devices
        _, way_s = sync_s(2.0 * parameters, self.layout.devices, near, self.links)
        experts = self.model.parameters.routed_experts / self.layout.devices
        if plan is not None and self.balancing.system == "flexmoe":
            experts = float(plan.held.sum(axis=(0, 1)).max()) * self.model.expert_parameters
        moved = MoveWork(ADAM_BYTES * (parameters + experts))
        adam = price_ops([Op("optimizer", moved)], self.machine)[0].time_s
        return 2 * way_s, adam * self.balancing.slowdown

    def _memory(self, plan: Plan) -> ExpertMemory:
        system, parameters = self.balancing.system, float(self.model.expert_parameters)
        if system == "flexmoe":
            return expert_memory(plan.held, plan.owner, parameters, "full")
        if system in ("hecate-rm", "fastermoe"):  # shadows live for a layer too
            return expert_memory(plan.held, plan.owner, parameters, "re-materialised")
        return expert_memory(plan.held, plan.owner, parameters, "kept")


def _of_experts(call: Call) -> bool:
    return call.op.name.startswith("moe.experts")


def _seconds(calls: tuple[PricedCall, ...], wanted: Callable[[Call], bool]) -> float:
    """Of the calls that are wanted, over all layers."""
    return sum(c.time_s * c.call.op.layers for c in calls if wanted(c.call))
