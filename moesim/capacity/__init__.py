"""Which layout on how many devices serves a load within latency targets, at what cost."""
