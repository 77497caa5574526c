"""``moesim doctor``: what is installed, what is missing, and how to install it."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

import moesim
from moesim.cli.console import Console, JsonOption, NoSeedOption, QuietOption, ResultOutOption

__all__ = ["doctor"]

CORE = (
    "numpy",
    "pydantic",
    "pyyaml",
    "networkx",
    "pulp",
    "matplotlib",
    "typer",
    "rich",
    "numba",
    "safetensors",
)

EXTRAS = {
    "kernels": ("torch", "triton"),
    "measured": ("aiconfigurator-core", "pyarrow", "scipy"),
    "highs": ("highspy",),
    "parquet": ("pyarrow", "pandas"),
    "record": ("torch", "transformers"),
    "ray": ("ray",),
}
"""Packages that each extra of pyproject.toml installs."""

UNLOCKS = {
    "kernels": "moesim kernels bench, plan --validate: experts run for real",
    "measured": "moesim calibrate, validate kernels|comm|serving: fits to measured tables",
    "highs": "a faster solver for moetuner and moge",
    "parquet": "requests.parquet of traces",
    "record": "moesim trace record: routers of a Hugging Face model",
    "ray": "moesim sweep and trace stats --executor ray: work on the machines of a Ray cluster",
}
"""What works with each extra and not without."""


def doctor(
    as_json: JsonOption = False,
    seed: NoSeedOption = 0,
    out: ResultOutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Say what is installed here, what is missing, and the command that installs it."""
    console = Console(as_json=as_json, quiet=quiet, out=out)
    extras = {name: _extra(name, packages) for name, packages in EXTRAS.items()}
    data: dict[str, Any] = {
        "schema": "moesim.doctor/1",
        "moesim": moesim.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": _usable_cpus(),
        "packages": {name: _version(name) for name in CORE},
        "extras": extras,
        "solvers": _solvers(),
        "torch": _torch(),
    }
    data["ok"] = all(data["packages"].values()) and any(data["solvers"].values())
    console.result(data, _text(data))
    if not data["ok"]:
        raise typer.Exit(2)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extra(name: str, packages: tuple[str, ...]) -> dict[str, Any]:
    found = {package: _version(package) for package in packages}
    complete = all(found.values())
    install = None if complete else f"pip install 'moesim[{name}]'"
    return {
        "packages": found,
        "installed": complete,
        "install": install,
        "unlocks": UNLOCKS[name],
    }


def _usable_cpus() -> int:
    """CPUs that this process may run on, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _solvers() -> dict[str, bool]:
    """Whether a solver answers ``minimise x, x ≥ 1`` correctly."""
    from moesim.planners.problem import SolverName
    from moesim.planners.solver import solve_milp

    def answers(solver: SolverName) -> bool:
        try:
            import pulp

            model = pulp.LpProblem("doctor", pulp.LpMinimize)
            x = model.add_variable("x", 0, 10, pulp.LpInteger)
            model.setObjective(1 * x)
            model.addConstraint(x >= 1, "least__0")
            result = solve_milp(model, solver=solver, time_limit_s=5.0, stop_gap=0.0)
        except Exception:
            return False  # whatever keeps it from working, it is not usable
        return result.values.get("x") == 1

    return {"highs": answers("highs"), "cbc": answers("cbc")}


def _torch() -> dict[str, Any] | None:
    """What torch sees, or None without it."""
    if find_spec("torch") is None:
        return None
    try:
        import torch

        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        cuda = torch.version.cuda
    except Exception as error:  # a broken installation is what a doctor is to find
        return {"version": _version("torch"), "problem": f"{type(error).__name__}: {error}"}
    return {
        "version": torch.__version__,
        "cuda": cuda,
        "gpus": devices,
        "triton": _version("triton"),
    }


def _text(data: dict[str, Any]) -> str:
    lines = [
        f"moesim {data['moesim']}, Python {data['python']} ({data['executable']})",
        f"{data['platform']}, {data['cpus']} usable CPUs",
        f"package in {Path(moesim.__file__).parent}",
        "",
    ]
    lines += [f"{name:<20} {version or 'MISSING'}" for name, version in data["packages"].items()]
    lines.append("")
    for name, extra in data["extras"].items():
        found = ", ".join(f"{key} {value or 'missing'}" for key, value in extra["packages"].items())
        hint = "" if extra["installed"] else f"   install: {extra['install']}"
        lines.append(f"{'[' + name + ']':<20} {found}{hint}")
        lines.append(f"{'':<20} for {extra['unlocks']}")
    lines.append("")
    for name, usable in data["solvers"].items():
        lines.append(f"{name:<20} {'usable' if usable else 'not usable'}")
    torch = data["torch"]
    if torch is not None:
        seen = torch.get("problem") or (
            f"CUDA {torch['cuda'] or 'not built in'}, "
            f"GPUs: {', '.join(torch['gpus']) or 'none'}, triton {torch['triton'] or 'missing'}"
        )
        lines.append(f"{'torch':<20} {seen}")
    lines += ["", "all that planning needs is here" if data["ok"] else "something is MISSING"]
    if torch is not None and not torch.get("gpus"):
        lines.insert(-2, f"{'':<20} a GPU would time the Triton kernels (moesim kernels bench)")
    lines.append("completion of the shell: moesim --install-completion")
    return "\n".join(lines)
