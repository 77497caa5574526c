"""Mutated configurations end in a valid model or in a MoesimError, never in anything else."""

import json
import string
from importlib import resources

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.errors import MoesimError
from moesim.model import ModelSpec, load_model, model_names, parse_hf_config

CONFIGS = {}
for name in model_names():
    text = (resources.files("moesim") / "models" / f"{name}.json").read_text("utf-8")
    if "schema" not in (body := json.loads(text)):
        CONFIGS[name] = body

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 0.0, 1.5, float("nan"), float("inf"), -0.0]),
    st.text(string.printable, max_size=5),
    st.lists(st.integers(-1, 5), max_size=4),
    st.dictionaries(st.text(string.ascii_letters, max_size=3), st.integers(), max_size=2),
)


def places(body, prefix=()):
    """Paths of every field, nested ones included."""
    for key, value in body.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))


def change(body, path, value, *, drop):
    result = dict(body)
    key, *rest = path
    if rest:
        if isinstance(result.get(key), dict):
            result[key] = change(result[key], rest, value, drop=drop)
    elif drop:
        result.pop(key, None)
    else:
        result[key] = value
    return result


@st.composite
def mutated(draw):
    name = draw(st.sampled_from(sorted(CONFIGS)))
    body = CONFIGS[name]
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(CONFIGS[name]))))
        body = change(body, path, draw(VALUES), drop=draw(st.booleans()))
    return body


@settings(
    deadline=None,
    derandomize=True,
    max_examples=1000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(mutated())
def test_mutated_configurations(body):
    ends_well(lambda: parse_hf_config(body, name="mutated", file="config.json"), "config.json")


def ends_well(read, file):
    """A valid model, or an error of ours that names the file."""
    try:
        model = read()
    except MoesimError as error:
        message = str(error)
    else:
        check(model)
        return
    assert file in message
    assert len(message) < 2500


def check(model):
    assert 1 <= model.top_k <= model.experts
    assert 0 < model.active_parameters <= model.total_parameters
    assert model.expert_weight_bytes > 0
    assert 0 <= model.moe_layers[0] <= model.moe_layers[-1] < model.layers
    assert ModelSpec.parse(model.to_dict()) == model


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.data())
def test_mutated_documents(data):
    body = load_model(data.draw(st.sampled_from(model_names()))).to_dict()
    path = data.draw(st.sampled_from(sorted(places(body))))
    body = change(body, path, data.draw(VALUES), drop=data.draw(st.booleans()))
    ends_well(lambda: ModelSpec.parse(body, file="model.json"), "model.json")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(data=st.data())
def test_flipped_bytes(data, tmp_path_factory):
    name = data.draw(st.sampled_from(sorted(CONFIGS)))
    raw = bytearray(json.dumps(CONFIGS[name]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(raw)
    ends_well(lambda: load_model(path), str(path))
