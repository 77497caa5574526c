"""Expert caches replayed on routing traces: which requests hit, for every policy and every size.

The words used here:

access      one expert asked for, once, by one event
event       the distinct experts that one step asks of one layer: a token's top-k, or the union over
            the sequences of a batch
step        one pass through all layers
contract    ``event-atomic``: all accesses of an event are classified against the cache as it was
            before the event, then the cache is updated access by access, in listing order.
            ``sequential``: every access is classified and the cache updated before the next one
cold        what the first access ever to an expert (since the last reset) counts as: ``miss``, or
            ``hit`` where the cache is larger than the number of experts seen before it, as if it
            had started full of the right experts (the convention of arXiv 2505.16056)
scope       ``per-layer``: every layer has slots of its own. ``pooled``: all layers share one cache,
            and every layer of a step is an event. ``pooled-token``: the same, and a whole step is
            one event (the model-level cache of arXiv 2505.16056)
reset       whether the cache is emptied before every sequence or never

Where to start: :func:`moesim.cache.replay.hit_curve` gives the hits for all sizes,
:func:`moesim.cache.replay.replay` the hits access by access at one size.

How to add a policy
-------------------
1. Make ``moesim/cache/policies/NAME.py`` with a frozen dataclass; its fields are the parameters.
2. If residents are always the last request plus the best by a priority that does not depend on the
   cache's size, derive from :class:`~moesim.cache.policy.StackPolicy` and write ``depths``: the
   smallest size at which each access hits. All sizes then come out of one pass; ``lfu_decay.py``
   is an example, and :mod:`moesim.cache.stack` has the loop for any priority.
3. Otherwise derive from :class:`~moesim.cache.policy.SizedPolicy` and write ``hits`` for one size;
   ``fifo.py`` is an example.
4. Set ``name`` and ``summary``, and add the class to ``moesim/cache/registry.py``.
5. Write its plain rule into ``tests/cache/plain.py`` and name it in ``CACHES`` of
   ``tests/cache/test_replay.py``: every access is then compared.
"""
