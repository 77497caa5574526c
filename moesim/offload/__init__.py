"""Expert offloading: what a step costs when the experts do not fit into the device's memory.

``schedules`` divides one layer's experts among GPU, CPU and link, ``replay`` walks through steps
and layers with caches, prefetch and clocks, ``tiers`` says what each part costs on a machine,
``predictors`` guess the next layer's experts, ``systems`` puts published systems together.
``simulation`` answers how fast one serves; ``slot_curves`` and ``whatif`` how many slots to take.
"""
