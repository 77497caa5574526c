"""Studies over grids: the same verb for every combination of its options, kept in one store."""
