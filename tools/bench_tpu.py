"""What the TPU estimates are worth, without a TPU: `python -m tools.bench_tpu blocks` or `rank`.

blocks: time of a fused over that of a depthwise inverted bottleneck, both from the compiler, for
    C = 16 to 256 on v3, v5e and v6e at batch 32. It must stay below the ratio of the FLOPs, rise
    from C = 16 to 256, and be the same again when compiled again (`--again`).
rank: networks of Accel-NASBench rebuilt as Keras models and compiled for v3; Spearman's rank
    correlation with the measured throughput of a v3 core (higher is better), beside that of the
    FLOPs. Compiles 20 s or more a network, resumes from the cache (NAS_CACHE).
    Only the order can agree: the authors' program (measure_throughput_tpu.py there) reads images
    while it runs, and without `torch.no_grad` it keeps the activations of all layers.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
DATA = Path(os.environ.get("NAS_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
CHIPS = ("v3", "v5e", "v6e")
# Sizes and channels of stages of EfficientNets.
BLOCKS = ((112, 16), (56, 24), (56, 48), (28, 64), (28, 96), (14, 128), (14, 256))
EXPAND = 4
# Of the authors' TPU runs: afzalxo/ANB-DatasetCollection, configs/conf_tpu.cfg; bfloat16, one core.
BATCH = 256
STRIDES = (1, 2, 2, 2, 1, 2, 1)
FILTERS = (16, 24, 40, 80, 112, 192, 320)


def block(size: int, channels: int, fused: bool):
    """An inverted bottleneck with shortcut: a full 3x3 in place of 1x1 and depthwise if `fused`."""
    import keras

    layers = keras.layers
    inputs = keras.Input((size, size, channels))
    wide = channels * EXPAND
    x = layers.Conv2D(wide, 3 if fused else 1, padding="same", use_bias=False, name="expand")(
        inputs
    )
    x = layers.ReLU()(layers.BatchNormalization()(x))
    if not fused:
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(channels, 1, use_bias=False, name="project")(x)
    return keras.Model(inputs, layers.Add()([layers.BatchNormalization()(x), inputs]))


def blocks(chips: list[str], sizes: tuple, again: bool) -> dict:
    """The ratios; with `again` everything is compiled a second time in an empty cache."""
    from latency.networks.count import count
    from latency.tpu import TPU

    result = {}
    for chip in chips:
        rows = []
        for size, channels in sizes:
            ms, macs = [], []
            for fused in (True, False):
                model = block(size, channels, fused)
                ms.append(TPU(chip).profile(model, batch_size=32).median_ms)
                macs.append(count(model).macs)
                if again:
                    with tempfile.TemporaryDirectory() as empty, cache(empty):
                        assert TPU(chip).profile(model, batch_size=32).median_ms == ms[-1]
            rows.append((size, channels, ms[0] / ms[1], macs[0] / macs[1], *ms))
            print(
                f"{chip} {size:3}x{channels:<3} fused/depthwise time {rows[-1][2]:5.2f}"
                f"  FLOPs {rows[-1][3]:4.2f}  ({ms[0]:.4f} and {ms[1]:.4f} ms)",
                flush=True,
            )
        below = all(row[2] < row[3] for row in rows)
        rises = rows[-1][2] > rows[0][2] if len(rows) > 1 else None
        print(
            f"{chip}: below the FLOPs' ratio everywhere: {below}; rises: {rises}; "
            f"the same again: {'yes' if again else 'not tried'}",
            flush=True,
        )
        result[chip] = {"rows": rows, "below": below, "rises": rises}
    return result


class cache:
    """Another cache folder for a while."""

    def __init__(self, folder: str):
        self.folder, self.before = folder, os.environ.get("NAS_CACHE")

    def __enter__(self):
        os.environ["NAS_CACHE"] = self.folder

    def __exit__(self, *_):
        os.environ.pop("NAS_CACHE")
        if self.before is not None:
            os.environ["NAS_CACHE"] = self.before


def network(arch: dict[str, int]):
    """A network of Accel-NASBench as the authors define it (ReLU, batch norm, 224 pixels)."""
    from families import mnasnet

    return mnasnet.build(
        mnasnet.Config(
            input_shape=(224, 224, 3),
            classes=1000,
            stem_filters=32,
            stem_stride=2,
            blocks=tuple(
                mnasnet.Block(
                    "mbconv",
                    kernel=arch[f"block{number}_k"],
                    stride=stride,
                    filters=filters,
                    repeats=arch[f"block{number}_l"],
                    expand=arch[f"block{number}_e"],
                    se_ratio=0.25 * arch[f"block{number}_se"],
                )
                for number, (stride, filters) in enumerate(zip(STRIDES, FILTERS, strict=True))
            ),
        )
    )


def rank(chip: str, networks: int, batch: int, seed: int) -> dict:
    """Compiles `networks` random ones; the correlations of each estimate with the measurements."""
    import keras
    from scipy.stats import spearmanr

    from latency.networks.count import count
    from latency.tpu import TPU
    from latency.tpu_compiler import chips as tpu_chips

    table = np.load(DATA / "nas" / "accel_nasbench_dev.npz")
    names = [str(name) for name in table["arch_names"]]
    order = np.random.default_rng(seed).permutation(len(table["arch"]))
    chosen = order[np.isfinite(table["throughput_tpuv3"][order])][:networks]  # some are missing
    peak = tpu_chips.named(chip)
    rows = []
    for index in chosen:
        started = time.monotonic()
        keras.backend.clear_session()
        model = network(dict(zip(names, map(int, table["arch"][index]), strict=True)))
        cost = count(model)
        record = TPU(chip).compile(model, batch)
        row = {
            "index": int(index),
            "measured": float(table["throughput_tpuv3"][index]),
            "mmacs": float(table["mmacs"][index]),
            "rebuilt_mmacs": cost.macs / 1e6,
            "mparams": float(table["mparams"][index]),
            "rebuilt_mparams": cost.trainable_params / 1e6,
            "schedule": TPU(chip).estimate(record)[0],
            "estimated_cycles": TPU(chip, schedule=False).estimate(record)[0],
            "roofline": 1e3
            * max(
                record["flops"] / peak.peak_tflops / 1e12,
                record["bytes_accessed"] / peak.bandwidth_gbs / 1e9,
            ),
            "optimal_seconds": record["optimal_seconds"] * 1e3,
        }
        rows.append(row)
        print(
            f"{len(rows):3} {row['measured']:7.0f} img/s measured, {row['schedule']:7.2f} ms"
            f" ({batch / row['schedule'] * 1e3:6.0f} img/s) estimated, {row['mmacs']:5.0f} MMACs,"
            f" {time.monotonic() - started:4.0f} s",
            flush=True,
        )
    measured = [1 / row["measured"] for row in rows]

    def correlation(name: str) -> float:
        return float(spearmanr([row[name] for row in rows], measured).statistic)

    # "mmacs" is the authors' count, which has normalizations and pooling too.
    counts, estimates = ("mmacs", "rebuilt_mmacs"), ("schedule", "estimated_cycles")
    rough = ("roofline", "optimal_seconds")
    result = {name: correlation(name) for name in (*counts, *estimates, *rough)}
    for kind in ("mmacs", "mparams"):
        off = max(abs(row[f"rebuilt_{kind}"] / row[kind] - 1) for row in rows)
        print(f"largest difference of rebuilt {kind}: {off:.2%}")
    print(f"Spearman with measured time of {len(rows)} networks on {chip}, batch {batch}:")
    for name, value in result.items():
        print(f"  {name:17} {value:.3f}")
    return {"correlations": result, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("blocks", "rank"))
    parser.add_argument("--chips", nargs="+")
    parser.add_argument("--sizes", nargs="+", help="of blocks, e.g. 112x16 14x256")
    parser.add_argument("--again", action="store_true", help="compile twice, and compare")
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "blocks":
        sizes = BLOCKS
        if arguments.sizes:
            sizes = tuple(tuple(map(int, size.split("x"))) for size in arguments.sizes)
        result = blocks(arguments.chips or list(CHIPS), sizes, arguments.again)
    else:
        chip = (arguments.chips or ["v3"])[0]
        result = rank(chip, arguments.networks, arguments.batch, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
