"""Running the whole command line inside the test process, and small inputs for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.traces.bundle import write_trace

LAYERS, EXPERTS, TOP_K, TOKENS = 3, 8, 2, 1500

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K,
    "num_local_experts": EXPERTS,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}
"""A model with few, small experts in every layer."""


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The only thing on stdout: one object on one line."""
        assert self.out.count("\n") == 1, self.out
        data: dict[str, Any] = json.loads(self.out)
        return data


def moesim(capsys: pytest.CaptureFixture[str], *words: object) -> Answer:
    """Run ``moesim WORDS``."""
    capsys.readouterr()
    code = run(app, [str(word) for word in words])
    return Answer(code, *capsys.readouterr())


def tiny_model(folder: Path, **changes: object) -> Path:
    """A Hugging Face ``config.json``."""
    file = folder / "config.json"
    file.write_text(json.dumps(TINY_CONFIG | changes))
    return file


def tiny_routing(layers: int = LAYERS, seed: int = 0) -> np.ndarray:
    """[layers, TOKENS, TOP_K] distinct experts per token, the first ones the most popular."""
    rng = np.random.default_rng(seed)
    keys = rng.random((layers, TOKENS, EXPERTS)) ** np.linspace(1, 3, EXPERTS)
    return np.argsort(-keys, axis=-1)[..., :TOP_K].astype(np.uint8)


def tiny_trace(folder: Path, **changes: Any) -> Path:
    """A trace bundle of the tiny model."""
    given: dict[str, Any] = {"model": "tiny", "experts": EXPERTS, "source": "made for a test"}
    given["routing"] = tiny_routing()
    write_trace(folder, **(given | changes))
    return folder


def tiny_counts(file: Path) -> Path:
    """[LAYERS, EXPERTS] counts of the tiny model."""
    np.save(file, np.arange(1, LAYERS * EXPERTS + 1).reshape(LAYERS, EXPERTS))
    return file
