"""Seconds of one operator from its shape and a few fitted physical coefficients (numpy only)."""
