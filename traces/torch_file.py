"""Reading PyTorch ``.pt`` files without trusting them.

A ``.pt`` file is a zip archive around a pickle, and unpickling runs code. So the archive is checked
first, then ``torch.load(weights_only=True)`` reads it in a child process with limits on memory,
processor time and wall time, and what comes back is plain arrays and JSON. A file that is refused
is never tried again in a less safe way.

``weights_only`` was bypassed in torch before 2.6 (CVE-2025-32434) and before 2.10 (CVE-2026-24747,
https://github.com/pytorch/pytorch/security/advisories), hence the required version.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, MissingExtraError, UsageError
from moesim.safe_io import read_json

__all__ = ["open_torch_files"]

MIN_TORCH = (2, 10)
MAX_FILE_BYTES = 16 * 2**30
MAX_ENTRIES = 500_000
TIMEOUT_S = 600.0
CPU_S = 600
EXTRA_MEMORY_BYTES = 2**30
"""What reading may take besides three times the file: the file, one converted tensor, the tree."""


@contextmanager
def open_torch_files(
    paths: Sequence[str | Path], *, timeout_s: float = TIMEOUT_S
) -> Iterator[list[Any]]:
    """The contents of ``.pt`` files: mappings, lists, plain values, and tensors as numpy arrays.

    All files are read by one child process, because importing torch takes seconds. Arrays are
    read-only maps of temporary files and are valid inside the ``with`` block.

    Args:
        paths: Files written by ``torch.save``.
        timeout_s: Wall time for all of them, in seconds.

    Raises:
        MissingExtraError: If torch is not installed.
        UsageError: If torch is too old to read untrusted files.
        InputError: If a file is no such archive, holds anything but tensors, numbers and text, or
            takes more time or memory than its size allows.
    """
    files = [Path(path) for path in paths]
    for file in files:
        _check_archive(file)
    _check_torch()
    with tempfile.TemporaryDirectory(prefix="moesim-pt-") as name:
        folder = Path(name)
        _run_child(files, folder, timeout_s)
        yield [_read_answer(file, folder, number) for number, file in enumerate(files)]


def _check_torch() -> None:
    purpose = "reading a .pt file"
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError("torch", "kernels", purpose) from error
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < MIN_TORCH:
        raise UsageError(
            f"{purpose} needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer, found {version}: older "
            "ones can be made to run code by a file\nfix: pip install -U 'moesim[kernels]'"
        )


def _check_archive(file: Path) -> None:
    """Refuse what is not a whole zip archive of stored entries, before torch sees it."""

    def refuse(problem: str, found: object = None) -> InputError:
        return InputError(
            problem,
            file=file,
            found=found,
            allowed="a file written by torch.save",
            fix="dump it again, or convert it to .npy or .json where it was made",
        )

    if not file.is_file():
        raise InputError(
            "a file is needed" if file.exists() else "no such file", file=file, fix="check the path"
        )
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise refuse("the file is too large", f"{size} bytes")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeError) as error:
        raise refuse("not a PyTorch file, or cut short", str(error)) from error
    if not 1 <= len(entries) <= MAX_ENTRIES:
        raise refuse("an unusual number of parts", len(entries))
    # torch.save stores without compression, so nothing may grow when it is read.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise refuse("the archive is compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise refuse("the parts of the archive overlap")
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise refuse("not a PyTorch file", f"a zip archive with {entries[0].filename}")


def _run_child(files: list[Path], folder: Path, timeout_s: float) -> None:
    listing = folder / "files.json"
    listing.write_text(json.dumps([str(file.resolve()) for file in files]))
    extra_bytes = 3 * max((file.stat().st_size for file in files), default=0) + EXTRA_MEMORY_BYTES
    # -P keeps the folder of the script, whose module names shadow standard ones, off sys.path.
    script = Path(__file__).with_name("torch_child.py")
    numbers = [str(extra_bytes), str(CPU_S)]
    command = [sys.executable, "-P", str(script), str(listing), str(folder), *numbers]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCH_")}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            "could not be read within the time limit",
            file=_unanswered(files, folder),
            found=f"more than {timeout_s:g} s",
            fix="split the recording into smaller files",
        ) from error
    if done.returncode and not (folder / "0.json").exists() and b"Error" in done.stderr:
        line = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1]
        raise InputError("could not be read", file=files[0], found=line)
    if done.returncode:
        raise InputError(
            "reading it used up its memory or time",
            file=_unanswered(files, folder),
            found=f"the reader ended with {done.returncode}",
            fix="split the recording into smaller files",
        )


def _unanswered(files: list[Path], folder: Path) -> Path:
    for number, file in enumerate(files):
        if not (folder / f"{number}.json").exists():
            return file
    return files[-1]


def _read_answer(file: Path, folder: Path, number: int) -> Any:
    answer = read_json(folder / f"{number}.json")
    if "error" in answer:
        raise InputError(
            "not readable as tensors, numbers and text",
            file=file,
            found=answer["error"],
            fix="dump it again; a file with other content is refused because reading it runs code",
        )
    binary = folder / f"{number}.bin"
    data = np.memmap(binary, np.uint8, mode="r") if binary.stat().st_size else np.zeros(0, np.uint8)
    return _value(answer["tree"], data)


def _value(tree: dict[str, Any], data: np.ndarray) -> Any:
    """The object that a tree of :mod:`moesim.traces.torch_child` stands for."""
    if "map" in tree:
        return {key: _value(part, data) for key, part in tree["map"]}
    if "list" in tree:
        return [_value(part, data) for part in tree["list"]]
    if "array" in tree:
        offset, dtype, shape = tree["array"]
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        return data[offset : offset + size_bytes].view(dtype).reshape(shape)
    return tree["value"]
