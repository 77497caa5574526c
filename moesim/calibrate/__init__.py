"""Measured kernels against the cost model: reading tables, cleaning, splitting, scoring."""
