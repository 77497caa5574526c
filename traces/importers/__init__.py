"""Importers of routing traces: one module per format, and the registry of them."""

from moesim.traces.importers.registry import IMPORTERS, ImportResult, import_trace

__all__ = ["IMPORTERS", "ImportResult", "import_trace"]
