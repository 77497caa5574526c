"""MoE vision transformers on FPGAs: ports, bursts, on-chip weight buffers, expert reordering."""
