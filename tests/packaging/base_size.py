"""Print what an install takes on disk: ``PYTHON base_size.py [--limit-mb N]``.

Run with the interpreter of a fresh virtual environment. Counts every file under its site-packages,
byte code included, but not pip and setuptools, which the environment brings itself. MB is 10⁶
bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import sysconfig
from pathlib import Path

BROUGHT_ALONG = ("pip", "setuptools", "wheel")


def size_bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit-mb", type=float)
    limit_mb = parser.parse_args().limit_mb
    site = Path(sysconfig.get_path("purelib"))
    parts = {
        distribution.name: size_bytes(
            [Path(distribution.locate_file(file)) for file in distribution.files or ()]
        )
        for distribution in importlib.metadata.distributions(path=[str(site)])
    }
    total = size_bytes(list(site.rglob("*"))) - sum(parts.get(name, 0) for name in BROUGHT_ALONG)
    for name in sorted(parts.keys() - set(BROUGHT_ALONG), key=lambda n: -parts[n])[:8]:
        print(f"{parts[name] / 1e6:8.1f} MB  {name}")
    print(f"{total / 1e6:8.1f} MB  in all")
    if limit_mb is not None and total > limit_mb * 1e6:
        sys.exit(f"the install is larger than {limit_mb:g} MB")


if __name__ == "__main__":
    main()
