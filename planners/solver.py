"""Solving a PuLP model with CBC or HiGHS, with an honest account of how it ended.

PuLP's ``LpStatus`` says "Optimal" also for a solve that its time limit cut off, so it is never
read here: the outcome comes from what the solver itself wrote, and the callers re-evaluate
objective and constraints from the integers.

CBC (in PuLP's wheel) runs as a child process in a session of its own, so that Ctrl-C reaches us
and not CBC; it is killed when we leave for whatever reason, or when it overstays. HiGHS runs in a
thread that is told to stop in the same cases. Both use one thread.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.errors import InfeasibleError, MissingExtraError, MoesimError
from moesim.planners.problem import SolverName

if TYPE_CHECKING:
    import pulp

__all__ = [
    "MilpResult",
    "MilpStatus",
    "choose_solver",
    "raise_infeasible",
    "relative_gap",
    "solve_milp",
]

GRACE_S = 2.0
"""How long a solver may overstay its time limit before it is stopped."""

_CBC_SCALE = 1e4
_CBC_ROUNDING = 5e-4
"""CBC prints its lower bound with three decimals: objectives, which are of the order of 1 here, are
scaled up for it, and half of the last digit is taken off."""

_GROUP = "__"
"""Constraints are named ``group__index``: the group is what an infeasible model is explained by."""


class MilpStatus(StrEnum):
    """How a solve ended."""

    SOLVED = "solved"
    """The solver proved its answer to be within the gap that was asked for."""
    LIMIT = "limit"
    """Time limit, with a feasible answer."""
    NOTHING = "nothing"
    """Time limit, without an answer."""
    INFEASIBLE = "infeasible"


@dataclass(frozen=True)
class MilpResult:
    """What a solver found.

    Attributes:
        status: How it ended.
        values: Value of every variable by name; empty without an answer.
        bound: Lower bound on the objective that the solver proved; −inf if it told none.
    """

    status: MilpStatus
    values: dict[str, float] = field(default_factory=dict)
    bound: float = -math.inf


def choose_solver(name: SolverName) -> SolverName:
    """``cbc`` or ``highs``; ``auto`` takes HiGHS if it is installed.

    Raises:
        MissingExtraError: If ``highs`` was asked for and is not installed.
    """
    import pulp

    if name == "cbc":
        return "cbc"
    if pulp.HiGHS().available():
        return "highs"
    if name == "highs":
        raise MissingExtraError("highspy", "highs", "the HiGHS solver")
    return "cbc"


def solve_milp(
    model: pulp.LpProblem,
    *,
    solver: SolverName,
    time_limit_s: float,
    stop_gap: float,
    start: dict[str, float] | None = None,
) -> MilpResult:
    """Minimise a model.

    Args:
        model: Constraints are named ``group__index``.
        solver: ``auto``, ``cbc`` or ``highs``.
        time_limit_s: Kept to within ``GRACE_S``.
        stop_gap: Relative gap at which the solver may stop.
        start: A feasible answer (value by variable name; missing ones are 0) to start from.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after the solver has been stopped.
    """
    run = _run_highs if choose_solver(solver) == "highs" else _run_cbc
    return run(model, time_limit_s, stop_gap, start)


def relative_gap(objective: float, bound: float) -> float:
    """(objective − bound) / objective, 0 where both are 0 (as HiGHS and Gurobi define it)."""
    if objective <= bound:
        return 0.0
    return (objective - bound) / abs(objective) if objective else math.inf


def raise_infeasible(model: pulp.LpProblem, *, solver: SolverName, what: str) -> None:
    """Say which group of constraints cannot be met.

    Every group is left out in turn; those without which the model is feasible are in conflict.

    Args:
        model: An infeasible model.
        solver: As for ``solve_milp``.
        what: What was to be found, e.g. ``layer 3: equal clusters``.

    Raises:
        InfeasibleError: Always.
    """
    import pulp

    groups: dict[str, list[Any]] = {}
    for constraint in model.constraints():
        groups.setdefault(str(constraint.name).partition(_GROUP)[0], []).append(constraint)
    conflicting = []
    for left_out in groups:
        reduced = pulp.LpProblem("relaxed", pulp.LpMinimize)
        reduced += pulp.lpSum([])
        for group, constraints in groups.items():
            if group != left_out:
                for constraint in constraints:
                    reduced.addConstraint(constraint, constraint.name)
        result = solve_milp(reduced, solver=solver, time_limit_s=10.0, stop_gap=1.0)
        if result.status is not MilpStatus.INFEASIBLE:
            conflicting.append(left_out)
    names = ", ".join(conflicting) or f"several of {', '.join(groups)} together"
    raise InfeasibleError(
        f"{what}: no answer exists; conflicting constraints: {names}\n"
        "fix: change --redundant or the number of devices"
    )


def _run_cbc(
    model: pulp.LpProblem, time_limit_s: float, stop_gap: float, start: dict[str, float] | None
) -> MilpResult:
    with tempfile.TemporaryDirectory(prefix="moesim-cbc-") as folder:
        mps, solution, first = (Path(folder) / name for name in ("m.mps", "m.sol", "m.start"))
        objective = model.objective
        model.setObjective(objective * _CBC_SCALE)
        variables, new_name, _, _ = model.writeMPS(str(mps), rename=1)
        model.setObjective(objective)
        command = [_cbc_binary(), str(mps), "-timeMode", "elapsed", "-sec", f"{time_limit_s:.3f}"]
        command += ["-ratio", repr(stop_gap), "-threads", "1", "-randomCbcSeed", "1"]
        if start is not None:
            lines = ["Stopped on time - objective value 0"]
            for index, variable in enumerate(variables):
                lines.append(f"{index} {new_name[variable.name]} {start.get(variable.name, 0.0)} 0")
            first.write_text("\n".join(lines) + "\n")
            command += ["-mipstart", str(first)]
        command += ["-solve", "-printingOptions", "all", "-solution", str(solution)]
        log = _run_child(command, time_limit_s + GRACE_S)
        if log is None or not solution.exists():
            return MilpResult(MilpStatus.NOTHING)
        old_name = {short: name for name, short in new_name.items()}
        return _read_cbc(solution.read_text(), log, old_name)


def _run_child(command: list[str], timeout_s: float) -> str | None:
    """What the child printed, or None if it had to be killed. No child survives this call."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if child.returncode != 0:
        raise MoesimError(f"CBC failed with exit code {child.returncode}: {output[-300:]}")
    return output


def _read_cbc(text: str, log: str, old_name: dict[str, str]) -> MilpResult:
    first, _, rest = text.partition("\n")
    told = re.findall(r"^Lower bound:\s+(\S+)", log, re.MULTILINE)
    bound = (float(told[-1]) - _CBC_ROUNDING) / _CBC_SCALE if told else -math.inf
    if first.startswith(("Infeasible", "Integer infeasible")):
        return MilpResult(MilpStatus.INFEASIBLE)
    # "Stopped on time (no integer solution - continuous used)" comes with fractional values.
    if "no integer solution" in first or not first.startswith(("Optimal", "Stopped")):
        return MilpResult(MilpStatus.NOTHING, bound=bound)
    values = {}
    for line in rest.splitlines():
        fields = line.replace("**", " ").split()
        if len(fields) >= 3 and fields[1] in old_name:
            values[old_name[fields[1]]] = float(fields[2])
    if first.startswith("Optimal"):
        if not told:
            bound = float(first.split()[-1]) / _CBC_SCALE
        return MilpResult(MilpStatus.SOLVED, values, bound)
    return MilpResult(MilpStatus.LIMIT, values, bound)


def _cbc_binary() -> str:
    from pulp.apis import coin_api

    bundled = Path(coin_api.pulp_cbc_path)
    if bundled.exists():
        return str(bundled)
    on_path = shutil.which("cbc")
    if on_path is None:
        raise MoesimError(
            f"PuLP brings no CBC for this platform ({bundled} is missing) and none is on the "
            "path; install HiGHS with: pip install 'moesim[highs]'"
        )
    return on_path


def _run_highs(
    model: pulp.LpProblem, time_limit_s: float, stop_gap: float, start: dict[str, float] | None
) -> MilpResult:
    import highspy
    import pulp

    interface = pulp.HiGHS(
        msg=False, gapRel=stop_gap, timeLimit=time_limit_s, threads=1, random_seed=1
    )
    with _no_greeting():
        interface.createAndConfigureSolver(model)
    interface.buildSolverModel(model)
    highs = model.solverModel
    names = [variable.name for variable in model.variables()]
    if start is not None:
        first = highspy.HighsSolution()
        first.col_value = [start.get(name, 0.0) for name in names]
        highs.setSolution(first)
    highs.HandleUserInterrupt = True
    if highs.is_solver_running():  # an earlier solve that would not stop
        return MilpResult(MilpStatus.NOTHING)
    highs.startSolve()
    if not _wait(highs, time_limit_s + GRACE_S):
        return MilpResult(MilpStatus.NOTHING)
    info, status = highs.getInfo(), highs.getModelStatus()
    if status in (
        highspy.HighsModelStatus.kInfeasible,
        highspy.HighsModelStatus.kUnboundedOrInfeasible,
    ):
        return MilpResult(MilpStatus.INFEASIBLE)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return MilpResult(MilpStatus.NOTHING, bound=info.mip_dual_bound)
    solved = status == highspy.HighsModelStatus.kOptimal
    return MilpResult(
        MilpStatus.SOLVED if solved else MilpStatus.LIMIT,
        dict(zip(names, highs.getSolution().col_value, strict=True)),
        info.mip_dual_bound,
    )


@contextmanager
def _no_greeting() -> Iterator[None]:
    """HiGHS 1.16 greets on the process's own stdout, which belongs to our result."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _wait(highs: Any, timeout_s: float) -> bool:
    """Wait for a solve; stop it on time-out and when anything (Ctrl-C) interrupts the wait.

    Not by ``Thread.join``: in Python 3.11 an interrupted join takes the thread for ended.
    """
    done = False
    try:
        done, _ = highs.wait(timeout_s)
    finally:
        if not done:
            highs.cancelSolve()
            done, _ = highs.wait(GRACE_S)
    return done
