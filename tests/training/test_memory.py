"""Nothing is held twice that should be held once, and nothing is lost."""

import pytest

from moesim.training.memory import activation_elements, device_parameters, training_memory

from .models import balanced, layout, small_model

LAYOUTS = [
    {},
    {"pp": 4, "dp": 2, "global_batch": 32},
    {"attention": "tp", "ep": 1, "expert_tp": 8},
    {"attention": "tp", "group": 4, "ep": 2, "expert_tp": 4, "dp": 4, "global_batch": 16},
    {"attention": "sp", "group": 2, "ep": 8, "dp": 8, "global_batch": 16},
]


@pytest.mark.parametrize("changes", LAYOUTS)
def test_every_parameter_is_held_and_every_optimizer_state_once(changes):
    model = small_model()
    shape = balanced(model, layout(**changes))
    own, stages = device_parameters(shape), shape.layout.pp
    per_stage = shape.layout.devices // stages
    parameters = model.parameters
    ends = parameters.embedding + parameters.output_head
    if stages > 1:  # every stage is counted as the fullest: with one end
        ends = stages * parameters.embedding
    inside = model.total_parameters - parameters.embedding - parameters.output_head
    assert own.sharded * per_stage * stages == pytest.approx(inside + ends)
    for part in own.parts:
        assert part.spread * part.copies == per_stage


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("changes", LAYOUTS)
def test_bytes_add_up(changes, recompute):
    memory = training_memory(balanced(small_model(), layout(**changes)), recompute)
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
    assert all(part > 0 for part in parts)
    assert memory.total == pytest.approx(sum(parts))
    assert memory.gradients == 2 * memory.weights


@pytest.mark.parametrize("changes", LAYOUTS)
def test_recomputing_more_keeps_less(changes):
    shape = balanced(small_model(), layout(**changes))
    kept = [activation_elements(shape, how) for how in ("none", "selective", "full")]
    assert kept == sorted(kept, reverse=True)


def test_the_published_count():
    """(2n + 2k + 3kf + 12 + 5/m) bsh/n and (2kf + 4 + 2/m) bsh/n without shared experts."""
    model = small_model(num_key_value_heads=4, shared_expert_intermediate_size=0)
    tensor = balanced(model, layout(attention="tp", ep=1, expert_tp=8))
    unit, f, k, n, m = 2048 / 8 * 512, 256 / 512, 2, 8, 4
    full = (2 * n + 2 * k + 3 * k * f + 12 + 5 / m) * unit
    assert activation_elements(tensor, "none") == pytest.approx(full)
    selective = (2 * k * f + 4 + 2 / m) * unit
    assert activation_elements(tensor, "selective") == pytest.approx(selective)
