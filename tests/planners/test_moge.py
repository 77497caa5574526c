"""Groups of experts: search against integer program against brute force; bounds; balance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError, UsageError
from moesim.planners.moge import MogeGroups, groups_document
from moesim.planners.moge_exact import partition_by_ilp, spectral_bound
from moesim.planners.moge_mass import (
    Choices,
    lost_mass,
    lost_sets_bits,
    pair_weights,
    read_choices,
)
from moesim.planners.moge_regroup import check_groups, regroup, search_groups
from moesim.planners.moge_score import draw_imbalance, imbalance_score
from moesim.planners.moge_search import swap_gains
from moesim.traces.bundle import open_trace, sample_path


def random_choices(seed: int, experts: int, top_k: int, tokens: int = 60) -> Choices:
    """Skewed choices by falling gate; some entries do not count."""
    rng = np.random.default_rng(seed)
    keys = rng.random((1, tokens, experts)) ** rng.uniform(0.3, 3, experts)
    expert = np.argsort(-keys, axis=-1)[..., :top_k].astype(np.int32)
    weight = -np.sort(-rng.random((1, tokens, top_k)), axis=-1)
    if top_k > 1:
        unused = rng.random(tokens) < 0.2
        expert[0, unused, -1], weight[0, unused, -1] = -1, 0.0
    return Choices(expert, weight, experts)


def plain_lost(choices: Choices, group: np.ndarray, per_group: int) -> float:
    """Lost mass of the first layer, in plain Python."""
    total = 0.0
    for names, gates in zip(choices.expert[0].tolist(), choices.weight[0].tolist(), strict=True):
        shelves: dict[int, list[float]] = {}
        for name, gate in zip(names, gates, strict=True):
            if name >= 0:
                shelves.setdefault(int(group[name]), []).append(gate)
        total += sum(sum(sorted(shelf)[: max(0, len(shelf) - per_group)])
                     for shelf in shelves.values())  # fmt: skip
    return total


def all_partitions(experts: list[int], size: int) -> list[list[tuple[int, ...]]]:
    if not experts:
        return [[]]
    first, rest = experts[0], experts[1:]
    found = []
    for others in combinations(rest, size - 1):
        left = [e for e in rest if e not in others]
        found += [[(first, *others), *tail] for tail in all_partitions(left, size)]
    return found


def as_group(partition: list[tuple[int, ...]], experts: int) -> np.ndarray:
    group = np.empty(experts, np.int64)
    for number, members in enumerate(partition):
        group[list(members)] = number
    return group


SHAPES = [(4, 2, 2), (6, 2, 2), (6, 3, 3), (6, 2, 4), (8, 2, 2), (8, 4, 4), (8, 2, 4)]


@pytest.mark.parametrize(("experts", "groups", "top_k"), SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_the_program_and_the_search_find_what_trying_all_partitions_finds(
    experts: int, groups: int, top_k: int, seed: int
) -> None:
    choices = random_choices(seed, experts, top_k)
    own = top_k // groups
    losses = [
        plain_lost(choices, as_group(p, experts), own)
        for p in all_partitions(list(range(experts)), experts // groups)
    ]
    expert, weight = choices.expert[0], choices.weight[0]
    group, bound, proven = partition_by_ilp(expert, weight, experts, groups, own)
    assert group is not None
    assert proven
    assert plain_lost(choices, group, own) == pytest.approx(min(losses), abs=1e-9)
    assert bound <= min(losses) + 1e-9
    searched, whole = search_groups(choices, 0, groups, own, 0, 60.0)
    assert whole
    assert plain_lost(choices, searched, own) == pytest.approx(min(losses), abs=1e-9)
    pairs, constant = pair_weights(expert, weight, experts, own)
    assert spectral_bound(pairs, constant, groups) <= min(losses) + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(8, 2, 4), (12, 3, 3), (12, 4, 8)]))
def test_gains_of_swaps_and_linear_bound_are_those_of_plain_counting(
    seed: int, shape: tuple[int, int, int]
) -> None:
    experts, groups, top_k = shape
    own = top_k // groups
    choices = random_choices(seed, experts, top_k)
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(experts) * groups // experts)
    expert, weight = choices.expert[0], choices.weight[0]
    now = plain_lost(choices, group, own)
    assert lost_mass(expert, weight, group, own) == pytest.approx(now)
    gain = swap_gains(expert, weight, group, groups, own)
    for a, b in combinations(range(experts), 2):
        if group[a] != group[b]:
            swapped = group.copy()
            swapped[[a, b]] = swapped[[b, a]]
            assert gain[a, b] == pytest.approx(
                now - plain_lost(choices, swapped, own), abs=1e-9
            )  # fmt: skip
    pairs, constant = pair_weights(expert, weight, experts, own)
    together = group[:, None] == group
    assert (pairs * together).sum() / 2 - constant <= now + 1e-9


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_the_sample_lose_a_fifth_less_than_random_and_contiguous(groups: int) -> None:
    trace = open_trace(sample_path())
    choices, held_out = read_choices(trace, 0.25)
    found = regroup(choices, groups, 4 // groups)
    assert held_out is not None
    assert found.mean("lost") <= 0.8 * found.mean("random")
    assert found.mean("lost") <= 0.8 * found.mean("contiguous")
    assert found.mean("lower_bound") <= found.mean("lost")
    document = groups_document(trace, "sample", found, held_out)
    assert document.holdout is not None
    assert document.holdout.groups <= 0.8 * document.holdout.contiguous
    assert MogeGroups.parse(document.to_dict()) == document
    table = document.placement().physical_to_logical
    assert (np.sort(table, 1) == np.arange(32)).all()
    bad = document.to_dict()
    bad["physical_to_logical"][3][0] = bad["physical_to_logical"][3][1]
    with pytest.raises(InputError, match=r"physical_to_logical\[3\]"):
        MogeGroups.parse(bad)


@pytest.mark.parametrize(
    ("tokens", "mean", "p95", "ratio"),
    [(1, 2.45, 4.0, 2.46), (16, 0.668, 1.0, 1.345), (64, 0.338, 0.5, 1.171),
     (456, 0.125, 0.19, 1.063)],
)  # fmt: skip
def test_imbalance_of_uniform_choices(tokens: int, mean: float, p95: float, ratio: float) -> None:
    """64 experts, top-8, 8 devices: figure 2 of arXiv 2505.21411, drawn independently of it."""
    found = draw_imbalance(experts=64, top_k=8, devices=8, tokens=tokens)
    assert found.score.mean() == pytest.approx(mean, rel=0.03)
    assert found.quantile(0.95) == pytest.approx(p95, rel=0.05)
    assert found.ratio.mean() == pytest.approx(ratio, rel=0.02)
    assert found.positive > 0.99


@settings(max_examples=25, deadline=None)
@given(
    per_group=st.integers(1, 3), groups=st.sampled_from([2, 4]), tokens=st.integers(1, 40),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_groups_are_balanced_whatever_the_router_says(
    per_group: int, groups: int, tokens: int, seed: int
) -> None:
    popularity = np.random.default_rng(seed).uniform(0.01, 100, 16)
    sizes = {"experts": 16, "top_k": per_group * groups, "devices": groups, "tokens": tokens}
    found = draw_imbalance(
        **sizes, groups=groups, draws=20, seed=seed, popularity=popularity
    )  # fmt: skip
    assert (found.score == 0).all()
    assert (found.ratio == 1).all()


def test_the_score_is_the_published_formula() -> None:
    assert imbalance_score(np.array([[3, 1], [2, 2]]), 2).tolist() == [1.0, 0.0]


def test_routing_freedom_of_pangu() -> None:
    free, grouped = lost_sets_bits(64, 8, 1)
    assert free == pytest.approx(np.log2(4426165368.0))  # C(64, 8)
    assert grouped == 24.0  # 8^8 sets


@pytest.mark.parametrize(
    ("sizes", "says"),
    [((32, 4, 5, None), "--groups 5"), ((32, 4, 8, None), "--per-group"),
     ((32, 4, 8, 5), "--per-group 5"), ((32, 4, 0, None), "--groups 0")],
)  # fmt: skip
def test_unequal_groups_are_refused(sizes: tuple[int, int, int, int | None], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_groups(*sizes)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"devices": 7}, "--devices 7"), ({"groups": 3}, "--groups 3"), ({"tokens": 0}, "--tokens"),
     ({"top_k": 65}, "--top-k")],
)  # fmt: skip
def test_sizes_that_do_not_divide_are_refused(change: dict[str, int], says: str) -> None:
    sizes = {"experts": 64, "top_k": 8, "devices": 8, "tokens": 16}
    with pytest.raises(UsageError, match=says):
        draw_imbalance(**(sizes | change))
