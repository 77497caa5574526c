"""Child process of :mod:`moesim.traces.torch_file`: reads ``.pt`` files, writes plain arrays.

It is run as a script in a process of its own, so it imports nothing of moesim. Arguments: a JSON
list of the files, the folder for the answers, the memory it may add in bytes, and its processor
time in seconds.

For input ``i`` the answer is ``<i>.json``, either ``{"error": TEXT}`` or ``{"tree": …}``. In a tree
a mapping is ``{"map": [[key, tree], …]}``, a sequence ``{"list": [tree, …]}``, a tensor
``{"array": [offset, dtype, shape]}`` with its bytes at that offset of ``<i>.bin``, and a plain
value ``{"value": …}``.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import IO, Any

MAX_DEPTH = 16
MAX_NODES = 300_000
ALIGNMENT_BYTES = 64
PLAIN_LIST_MIN = 32
"""Shorter lists of integers stay lists; longer ones (positions, token ids) become arrays."""


class _Refused(Exception):
    """The content is readable but is not a tree of tensors, numbers and text."""


class _Writer:
    """Turns one loaded object into a tree, with limits on what it may become."""

    def __init__(self, binary: IO[bytes], limit_bytes: int) -> None:
        self.binary = binary
        self.limit_bytes = limit_bytes
        self.offset = 0
        self.nodes = 0

    def tree(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """The tree of a value.

        Depth and nodes are counted, because an object may contain itself or share one part very
        many times.
        """
        import torch

        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise _Refused("nested too deep or too many parts")
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            pairs = [[_key(key), self.tree(part, depth + 1)] for key, part in value.items()]
            return {"map": pairs}
        if isinstance(value, list | tuple):
            if len(value) >= PLAIN_LIST_MIN and all(_is_int64(part) for part in value):
                return self._tensor(torch.tensor(value, dtype=torch.int64))
            return {"list": [self.tree(part, depth + 1) for part in value]}
        if value is None or isinstance(value, bool | str):
            return {"value": value}
        if _is_int64(value):
            return {"value": value}
        if isinstance(value, float):
            return {"value": value if math.isfinite(value) else str(value)}
        raise _Refused(f"a value of type {type(value).__name__}")

    def _tensor(self, tensor: Any) -> dict[str, Any]:
        import torch

        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise _Refused("a sparse, quantised or complex tensor")
        # A tensor with stride 0 states any size over a storage of a few bytes.
        size_bytes = tensor.numel() * max(tensor.element_size(), 4)
        if self.offset + size_bytes > self.limit_bytes:
            raise _Refused("tensors larger than their file")
        plain = tensor.detach()
        if plain.dtype == torch.bfloat16:  # numpy has no such type
            plain = plain.float()
        array = plain.contiguous().numpy()
        padding = -self.offset % ALIGNMENT_BYTES
        self.binary.write(b"\0" * padding)
        self.offset += padding
        start = self.offset
        self.binary.write(array.data if array.size else b"")
        self.offset += array.nbytes
        return {"array": [start, array.dtype.str, list(array.shape)]}


def _is_int64(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _key(key: Any) -> str | int:
    if isinstance(key, str):
        return key
    if _is_int64(key):
        return int(key)
    raise _Refused(f"a key of type {type(key).__name__}")


def _limit(extra_bytes: int, cpu_s: int) -> None:
    """Allow so much more address space than the imported libraries take already."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        # No /proc or no such limit on this system: the time limit and weights_only remain.
        return


def _convert(source: Path, binary: Path) -> str:
    """The answer for one file, as JSON."""
    import torch

    try:
        value = torch.load(source, map_location="cpu", weights_only=True)
        # Views may repeat a storage, so the answer may be somewhat larger than the file.
        limit_bytes = 4 * source.stat().st_size + 2**20
        with binary.open("wb") as stream:
            tree = _Writer(stream, limit_bytes).tree(value)
        return json.dumps({"tree": tree}, allow_nan=False)
    except _Refused as error:
        return json.dumps({"error": f"it holds {error}"})
    except MemoryError:
        return json.dumps({"error": "it needs more memory than its size allows"})
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return json.dumps({"error": first[:200]})


def main(arguments: list[str]) -> None:
    """Convert every listed file."""
    listing, folder = Path(arguments[0]), Path(arguments[1])
    import torch

    torch.set_num_threads(1)
    _limit(extra_bytes=int(arguments[2]), cpu_s=int(arguments[3]))
    for number, source in enumerate(json.loads(listing.read_text())):
        answer = _convert(Path(source), folder / f"{number}.bin")
        # Renamed when complete: the parent takes a missing answer for a reader that was stopped.
        part = folder / f"{number}.part"
        part.write_text(answer)
        part.replace(folder / f"{number}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
