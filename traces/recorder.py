"""Record the routing of a Hugging Face model while it runs.

    with RoutingRecorder(model) as recorder:
        model.generate(**tokenizer(texts, return_tensors="pt", padding=True), max_new_tokens=32)
    recorder.write("trace", model_name="…", source="…")

Each row of a forward pass without a filled KV cache is a new request; a pass with the cache of
earlier passes goes on with their requests. Padding (attention mask 0) is dropped, and so is what a
batch feeds to rows that have ended already. One new token per row on a filled cache is ``decode``,
everything else ``prefill``. The trace holds request after request, each in the order of its tokens.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from moesim.errors import InputError
from moesim.extras import require
from moesim.traces.bundle import Trace, routing_dtype, write_trace
from moesim.traces.router_outputs import Choice, Router, find_routers

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

__all__ = ["RoutingRecorder"]

_PHASES = ("prefill", "decode")


@dataclass
class _Requests:
    """The requests in the rows of a batch.

    Attributes:
        ids: [B] request of each row.
        positions: [B] tokens of the request so far.
        ended: [B] bool, the row has produced its end-of-sequence token.
        cached: Tokens in the KV cache, padding included.
    """

    ids: np.ndarray
    positions: np.ndarray
    ended: np.ndarray
    cached: int = 0


@dataclass
class _Pass:
    """One forward pass under way.

    Attributes:
        requests: Its rows.
        kept: [B, Q] bool, tokens that count.
        decode: One new token per row on a filled cache.
        choices: What each router chose, by model layer: [n, K] indices and weights.
    """

    requests: _Requests
    kept: np.ndarray
    decode: bool
    choices: dict[int, tuple[np.ndarray, np.ndarray]]


class RoutingRecorder:
    """Records every forward pass of a model between ``with`` and its end.

    Beam search and speculative decoding are not supported: they reorder or cut the cache.

    Args:
        model: A Hugging Face causal language model with MoE layers.
        domain: Domain of the requests that begin from now on; may be set again at any time, and
            may be a sequence with one domain per row of the next batch.
        eos_token_ids: Tokens that end a request while it decodes; the model's own by default, ()
            for none.

    Raises:
        MissingExtraError: If torch is not installed.
        InputError: If the model has no MoE layer or a router of an unknown class.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        domain: str | Sequence[str] = "",
        eos_token_ids: Collection[int] | None = None,
    ) -> None:
        require("torch", "record", "recording routing")
        self.domain = domain
        self._model = model
        self._routers = find_routers(model)
        self._eos = np.array(sorted(_eos(model) if eos_token_ids is None else eos_token_ids))
        self._signature = inspect.signature(model.forward)
        self._handles: list[Any] = []
        self._by_cache: weakref.WeakKeyDictionary[Any, _Requests] = weakref.WeakKeyDictionary()
        self._pass: _Pass | None = None
        self._domains: list[str] = []
        self._shape: tuple[int, int] | None = None
        self._routing: list[list[np.ndarray]] = [[] for _ in self._routers]
        self._gates: list[list[np.ndarray]] = [[] for _ in self._routers]
        self._rows: list[np.ndarray] = []

    def __enter__(self) -> Self:
        forward = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        end = self._model.register_forward_hook(self._end)
        self._handles = [forward, end]
        for router in self._routers:
            self._handles.append(router.module.register_forward_hook(self._hook(router)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._pass = None

    @property
    def tokens(self) -> int:
        """Tokens recorded so far."""
        return sum(len(rows) for rows in self._rows)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """[L] model layer index of each MoE layer."""
        return tuple(router.layer for router in self._routers)

    def routing(self) -> np.ndarray:
        """[L, T, K] uint8 or uint16, the experts chosen so far.

        Raises:
            InputError: If nothing has been recorded.
        """
        return self._ordered(self._routing)

    def gates(self) -> np.ndarray:
        """[L, T, K] float16, the weights that the routers gave to their choices."""
        return self._ordered(self._gates)

    def requests(self) -> pd.DataFrame:
        """One row per token: request, position, phase and domain."""
        import pandas as pd

        request, position, decode = self._token_rows()[self._order()].T
        domains = sorted(set(self._domains))
        code = np.searchsorted(domains, self._domains)[request]
        category = pd.Categorical.from_codes
        return pd.DataFrame(
            {
                "request": request.astype(np.int32),
                "position": position.astype(np.int32),
                "phase": category(decode, pd.Index(_PHASES)),
                "domain": category(code, pd.Index(domains)),
            }
        )

    def write(
        self, folder: str | Path, *, model_name: str | None = None, source: str = ""
    ) -> Trace:
        """Write what was recorded as a bundle; ``requests.parquet`` only if pyarrow is installed.

        Args:
            folder: Made if needed; one that holds a bundle is refused.
            model_name: For the manifest; the class of the model by default.
            source: Where the text came from, in words.

        Raises:
            InputError: If nothing was recorded or the folder holds a bundle.
        """
        routing = self.routing()
        assert self._shape is not None  # noqa: S101 - routing() has checked
        return write_trace(
            folder,
            routing,
            model=model_name or type(self._model).__name__,
            experts=self._shape[0],
            moe_layers=self.moe_layers,
            source=source or "recorded from a Hugging Face model",
            gates=self.gates(),
            requests=self.requests() if find_spec("pyarrow") else None,
            extra={"routers": sorted({type(router.module).__name__ for router in self._routers})},
        )

    def _token_rows(self) -> np.ndarray:
        """[T, 3] request, position and whether it is decode, in the order of the passes."""
        if not self.tokens:
            raise InputError(
                "nothing was recorded",
                field="recorder",
                fix="run the model inside the recorder's with block",
            )
        return np.concatenate(self._rows)

    def _order(self) -> np.ndarray:
        rows = self._token_rows()
        order: np.ndarray = np.lexsort((rows[:, 1], rows[:, 0]))
        return order

    def _ordered(self, blocks: list[list[np.ndarray]]) -> np.ndarray:
        order = self._order()
        return np.stack([np.concatenate(layer)[order] for layer in blocks])

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.get("kwargs", {})
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        if tokens is None:
            raise InputError("a forward pass without input_ids or inputs_embeds", field="input_ids")
        batch, new = tokens.shape[:2]
        mask = _mask(given.get("attention_mask"), batch, new)
        name = "cache" if "cache" in given else "past_key_values"  # until transformers 5.23
        cache = given.get(name)
        requests = self._continued(cache, batch)
        decode = requests is not None and new == 1
        if requests is None:
            requests = self._new_requests(batch)
        if not decode:
            requests.ended[:] = False
        elif given.get("input_ids") is not None:
            # The end token is the last one a request produces; no engine feeds it back.
            requests.ended |= np.isin(tokens[:, 0].cpu().numpy(), self._eos)
        self._pass = _Pass(requests, mask & ~requests.ended[:, None], decode, {})

    def _continued(self, cache: Any, batch: int) -> _Requests | None:
        """The requests of a filled cache; None without one."""
        if cache is None:
            return None
        if not hasattr(cache, "get_seq_length"):
            raise InputError(
                "not a Cache object",
                field="cache",
                found=type(cache).__name__,
                allowed="transformers.Cache",
            )
        cached = int(cache.get_seq_length())
        if cached == 0:
            return None
        requests = self._by_cache.get(cache)
        if requests is None or requests.cached != cached or len(requests.ids) != batch:
            known = "none" if requests is None else f"{requests.cached} × {len(requests.ids)}"
            raise InputError(
                "the KV cache is not as the recorded passes left it",
                field="cache",
                found=f"{cached} tokens × {batch} rows, recorded: {known}",
                fix="record from the prefill on, without beam search or speculative decoding",
            )
        return requests

    def _new_requests(self, batch: int) -> _Requests:
        domains = [self.domain] * batch if isinstance(self.domain, str) else list(self.domain)
        if len(domains) != batch:
            raise InputError(
                "one domain per row is needed",
                field="domain",
                found=f"{len(domains)} domains",
                allowed=f"{batch} or a single one",
            )
        first = len(self._domains)
        self._domains += domains
        return _Requests(
            first + np.arange(batch), np.zeros(batch, dtype=np.int64), np.zeros(batch, dtype=bool)
        )

    def _hook(self, router: Router) -> Any:
        def record(module: nn.Module, args: Any, output: object) -> None:
            running = self._pass
            if running is None:
                raise InputError(
                    "a router ran outside of a forward pass of the recorded model",
                    field=router.name,
                    fix="call the model that was given to the recorder, not a part of it",
                )
            if router.layer in running.choices:
                raise InputError("the router ran twice in one forward pass", field=router.name)
            choice = router.read(module, output)
            if choice is None or len(choice.indices) != running.kept.size:
                raise InputError(
                    "the router returned something else than the choice of every token",
                    field=router.name,
                    found=_describe(output),
                    allowed=f"logits, weights and indices of {running.kept.size} tokens",
                    fix="use transformers 5.23 or near it",
                )
            running.choices[router.layer] = self._taken(router, choice, running.kept.ravel())

        return record

    def _taken(
        self, router: Router, choice: Choice, kept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        shape = (choice.experts, choice.indices.shape[1])
        if self._shape is None:
            self._shape = shape
        if shape != self._shape:
            raise InputError(
                "MoE layers of different shape cannot be recorded into one trace",
                field=router.name,
                found="{} experts, top-{}".format(*shape),
                allowed="{} experts, top-{}".format(*self._shape),
            )
        indices = choice.indices.detach().cpu().numpy()[kept]
        if indices.size and not 0 <= indices.min() <= indices.max() < choice.experts:
            raise InputError("expert id out of range", field=router.name, found=int(indices.max()))
        weights = choice.weights.detach().float().cpu().numpy()[kept]
        return indices.astype(routing_dtype(choice.experts)), weights.astype(np.float16)

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        running, self._pass = self._pass, None
        if running is None:
            return
        for router in self._routers:
            if router.layer not in running.choices:
                raise InputError("the router did not run in a forward pass", field=router.name)
        requests, kept = running.requests, running.kept
        position = requests.positions[:, None] + np.cumsum(kept, axis=1) - 1
        row, _ = np.nonzero(kept)
        self._rows.append(
            np.column_stack(
                [
                    requests.ids[row],
                    position[kept],
                    np.full(row.size, int(running.decode)),
                ]
            )
        )
        for index, router in enumerate(self._routers):
            indices, weights = running.choices[router.layer]
            self._routing[index].append(indices)
            self._gates[index].append(weights)
        requests.positions += kept.sum(axis=1)
        name = "cache" if hasattr(output, "cache") else "past_key_values"
        cache = getattr(output, name, None)
        if cache is not None and hasattr(cache, "get_seq_length"):
            requests.cached += kept.shape[1]
            self._by_cache[cache] = requests


def _mask(mask: Any, batch: int, new: int) -> np.ndarray:
    """[B, Q] bool, the new tokens that are not padding."""
    if mask is None:
        return np.ones((batch, new), dtype=bool)
    if getattr(mask, "ndim", 0) != 2 or mask.shape[0] != batch or mask.shape[1] < new:
        raise InputError(
            "padding cannot be told from this attention mask",
            field="attention_mask",
            found=str(tuple(mask.shape)) if hasattr(mask, "shape") else type(mask).__name__,
            allowed="[batch, tokens] of 0 and 1",
        )
    return np.asarray(mask[:, -new:].cpu().numpy() != 0)


def _eos(model: nn.Module) -> Collection[int]:
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def _describe(output: object) -> str:
    parts = output if isinstance(output, tuple) else (output,)
    return ", ".join(f"{type(part).__name__}{tuple(getattr(part, 'shape', ()))}" for part in parts)
