"""Routing traces: the bundle format, importers, recorder, generators and statistics."""
