"""Finding a model: by name, by Hugging Face id, or in a file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from moesim.errors import InputError, UsageError
from moesim.model.hf_config import parse_hf_config
from moesim.model.spec import ModelSpec
from moesim.safe_io import parse_json, read_text, read_yaml

__all__ = ["dense_model_names", "load_model", "model_names"]

DERIVED = frozenset(
    {
        "ok",
        "total_parameters",
        "active_parameters",
        "active_parameters_without_input_embedding",
        "mtp_parameters",
        "parameters",
        "expert_parameters",
        "expert_bits",
        "expert_weight_bytes",
        "kv_cache_elements_per_token",
    }
)
"""Keys that the command line adds to a document; they follow from the others."""


def model_names() -> list[str]:
    """Names of the Mixture-of-Experts models that ship with moesim, sorted."""
    return _names("models")


def dense_model_names() -> list[str]:
    """Names of the dense models that ship with moesim, sorted."""
    return _names("models/dense")


def _names(folder: str) -> list[str]:
    names = (entry.name for entry in (resources.files("moesim") / folder).iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def load_model(
    name_or_path: str | Path, *, dense: bool = False, transforms: Sequence[str] = ()
) -> ModelSpec:
    """A model by name, by Hugging Face id, or from a file.

    Args:
        name_or_path: A name out of :func:`model_names` in any case, the Hugging Face id of one of
            them (``deepseek-ai/DeepSeek-V3``), a ``config.json``, a folder that holds one, or a
            ``moesim.model/1`` document (JSON or YAML). A path that exists comes first.
        dense: Whether a model without experts will do.
        transforms: Applied in order; see :mod:`moesim.model.transforms`.

    Raises:
        UsageError: If there is neither such a model nor such a file.
        InputError: If the file cannot be used, naming file and field.
    """
    model = _load(name_or_path)
    if transforms:
        from moesim.model.transforms import transform_model

        model = transform_model(model, transforms)
    if not (model.moe_layers or dense):
        raise InputError(
            "a dense model: it has no experts to place",
            field="moe_layers",
            found=model.name,
            allowed="Mixture-of-Experts models (`moesim model list`)",
            fix="name a Mixture-of-Experts model; dense ones can be simulated and sized: "
            "`moesim simulate step`, `moesim simulate serving`, `moesim capacity`",
        )
    return model


def _load(name_or_path: str | Path) -> ModelSpec:
    path = Path(name_or_path)
    text = str(name_or_path)
    if "\0" in text:
        raise UsageError("a model name cannot hold a null character")
    ids = _ids()
    name = None if isinstance(name_or_path, Path) else ids.get(text.casefold())
    if name is not None and not _exists(path / "config.json") and not path.is_file():
        return _shipped(name)
    if isinstance(name_or_path, Path) or _exists(path):
        return _load_file(path)
    if path.suffix.lower() in {".json", ".yaml", ".yml"}:
        raise InputError("no such file", file=path, fix="check the path")
    near = difflib.get_close_matches(text.casefold(), list(ids), n=4, cutoff=0.5)
    near = list(dict.fromkeys(ids[match] for match in near)) or model_names()
    raise UsageError(
        f"no model and no file of this name: {text[:80]!r}; near: {', '.join(near)}\n"
        "fix: see `moesim model list`, or give the path of a config.json"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for a file
        return False


@lru_cache(maxsize=1)
def _ids() -> dict[str, str]:
    """Names and Hugging Face ids in lower case → name."""
    result = {}
    for name in (*model_names(), *dense_model_names()):
        result[name.casefold()] = name
        for alias in _shipped_content(name).get("_ids", []):
            result[alias.casefold()] = name
    return result


def _shipped_content(name: str) -> dict[str, Any]:
    folder = resources.files("moesim") / (
        "models/dense" if name in dense_model_names() else "models"
    )
    text = (folder / f"{name}.json").read_text("utf-8")
    content: dict[str, Any] = parse_json(text, file=f"models/{name}.json")
    return content


@lru_cache(maxsize=64)
def _shipped(name: str) -> ModelSpec:
    return _parse(_shipped_content(name), name, f"models/{name}.json")


def _load_file(path: Path) -> ModelSpec:
    if path.is_dir():
        path = path / "config.json"
    if path.suffix.lower() in {".yaml", ".yml"}:
        content = read_yaml(path)
    else:
        content = parse_json(read_text(path), file=path, non_finite=True)
    if isinstance(content, dict) and path.name.endswith("config.json"):
        # NVIDIA's checkpoints state the quantisation in a file of its own.
        beside = path.with_name(path.name.removesuffix("config.json") + "hf_quant_config.json")
        if "quantization_config" not in content and beside.is_file():
            stated = parse_json(read_text(beside), file=beside)
            if isinstance(stated, dict) and isinstance(stated.get("quantization"), dict):
                content = content | {"quantization": stated["quantization"]}
    name = path.parent.name if path.name == "config.json" else path.stem
    return _parse(content, name or "model", path)


def _parse(content: Any, name: str, file: str | Path) -> ModelSpec:
    if not isinstance(content, dict):
        raise InputError("a mapping is needed", file=file, found=type(content).__name__)
    if "schema" not in content:
        return parse_hf_config(content, name=name, file=file)
    body = {
        key: value
        for key, value in content.items()
        if key not in DERIVED and not (isinstance(key, str) and key.startswith("_"))
    }
    model = ModelSpec.parse(body, file=file)
    for key in ("total_parameters", "active_parameters"):
        if key in content and content[key] != getattr(model, key):
            raise InputError(
                "does not follow from the other fields",
                file=file,
                field=key,
                found=content[key],
                allowed=str(getattr(model, key)),
                fix="leave it out: it is computed",
            )
    return model
