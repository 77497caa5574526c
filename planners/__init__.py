"""Planners: where every expert goes, and the files that serving engines load."""
