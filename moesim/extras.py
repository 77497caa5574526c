"""Optional packages: imported when needed, and a missing one is one line that names its extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from moesim.errors import MissingExtraError

__all__ = ["require"]


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Dotted module name, e.g. ``pyarrow.parquet``.
        extra: The extra of this project that installs it.
        purpose: What needs it, as the subject of a sentence ("reading requests.parquet").

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(package, extra, purpose) from error
