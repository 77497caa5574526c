"""Every Mixture-of-Experts configuration that ships with aiconfigurator-core is read."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from moesim.errors import InputError
from moesim.model import load_model
from moesim.model.hf_config import EXPERTS


def folder():
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model_configs"


CONFIGS = sorted((folder() or Path("none")).glob("*_config.json"))
CONFIGS = [path for path in CONFIGS if not path.name.endswith("_hf_quant_config.json")]

pytestmark = pytest.mark.skipif(not CONFIGS, reason="aiconfigurator-core is not installed")


def has_experts(value):
    """Whether any level of a configuration states a number of experts."""
    if not isinstance(value, dict):
        return False
    return any(value.get(name) for name in EXPERTS) or any(map(has_experts, value.values()))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name[:-12] for path in CONFIGS])
def test_read(path):
    content = json.loads(path.read_text())
    if not has_experts(content):
        with pytest.raises(InputError, match="dense model"):
            load_model(path)
        return
    model = load_model(path)
    name = path.name.lower()
    if "nvfp4" in name:
        assert model.expert_bits == 4.5
    elif "fp8" in name:
        assert 8 < model.expert_bits < 8.1
        assert model.activation_bits == 8
    # Names such as 235B-A22B state both figures; the roughest names round by 6 and 16 %.
    if stated := re.search(r"(\d+)b-a(\d+)b", name):
        total, active = (float(word) * 1e9 for word in stated.groups())
        assert model.total_parameters == pytest.approx(total, rel=0.06)
        assert model.active_parameters == pytest.approx(active, rel=0.2)


def test_there_are_many():
    assert sum(has_experts(json.loads(path.read_text())) for path in CONFIGS) >= 60
