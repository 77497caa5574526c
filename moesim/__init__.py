"""moesim: performance simulation and planning for Mixture-of-Experts models.

Heavy packages are imported by the modules that need them, never here.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
