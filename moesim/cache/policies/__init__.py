"""One policy per file; :mod:`moesim.cache.registry` lists them."""
