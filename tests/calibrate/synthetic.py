"""Made-up measured tables, in memory and as files of the layout that the package has."""

import numpy as np

from moesim.calibrate.frame import Frame, concatenate

TOKENS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])


def moe_frame(system="h100_sxm", version="1.0", *, scale=1.0, seed=0, series=24, noise=0.01):
    """A ``moe`` table: ``series`` token series of a smooth kernel with a little noise."""
    source = np.random.default_rng((seed, len(system), len(version), int(scale * 1000)))
    tokens = np.tile(TOKENS, series)
    which = np.repeat(np.arange(series), len(TOKENS))
    rows = len(tokens)
    # A floor, then growth in proportion: what every kernel looks like in log-log. Splitting a
    # layer changes nothing here.
    latency_s = (2e-5 * (1 + which % 4) + 3e-8 * (1 + which // 48) * tokens) * scale
    latency_s *= np.exp(source.normal(0, noise, rows))
    counts = {
        "tokens": tokens,
        "hidden": 1024 * (1 + which % 4),
        "inter": 512 * (1 + which // 48),
        "top_k": np.full(rows, 2),
        "experts": np.full(rows, 16),
        "moe_tp": 2 ** (which // 4 % 3),
        "moe_ep": 2 ** (which // 12 % 4),
    }
    labels = {
        "system": (system,),
        "engine": ("sglang",),
        "version": (version,),
        "device": (f"NVIDIA {system.partition('_')[0].upper()}",),
        "kernel": ("triton",),
        "dtype": ("fp8",),
        "distribution": ("balanced",),
    }
    columns = {name: np.zeros(rows, np.int32) for name in labels}
    columns |= {name: values.astype(np.int64) for name, values in counts.items()}
    columns |= {"latency_s": latency_s}
    columns |= {name: np.full(rows, np.nan) for name in ("power_w", "power_limit_w")}
    return Frame("moe", columns, labels)


def pair(**options):
    """The same table on H100 and, a tenth faster, on H200."""
    return concatenate(
        [moe_frame("h100_sxm", **options), moe_frame("h200_sxm", scale=0.9, **options)]
    )


def changed(frame, **columns):
    """The frame with some columns replaced."""
    return Frame(frame.operator, {**frame.columns, **columns}, frame.labels, frame.notes)


def write_table(folder, place, operator, columns):
    """Write a file; ``place`` is ``<system>/<family>/<engine>/<version>``."""
    import pyarrow
    import pyarrow.parquet

    path = folder / place / f"{operator}_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def moe_columns(rows=4, **other):
    """Columns of a ``moe_perf`` file, as the collector writes them (latency in ms)."""
    text = {
        "framework": "SGLang",
        "version": "0.5.14",
        "device": "NVIDIA H100 80GB HBM3",
        "op_name": "moe",
        "kernel_source": "sglang_fused_moe_triton",
        "moe_dtype": "fp8",
        "distribution": "balanced",
    }
    counts = {
        "hidden_size": 4096,
        "inter_size": 1024,
        "topk": 2,
        "num_experts": 8,
        "moe_tp_size": 1,
        "moe_ep_size": 1,
    }
    columns = {name: [value] * rows for name, value in {**text, **counts}.items()}
    columns["num_tokens"] = [2**i for i in range(rows)]
    columns["latency"] = [0.1 * (i + 1) for i in range(rows)]
    return columns | other
