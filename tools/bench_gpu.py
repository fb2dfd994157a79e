"""How well the GPU rooflines estimate: against published measurements, and an attached GPU.

    python tools/bench_gpu.py published --networks 120      # of ../shared/data, no GPU needed
    python tools/bench_gpu.py measured --dtype bfloat16     # on a machine with an NVIDIA GPU

`published` rebuilds networks of three data sets as Keras models and compares the roofline of their
layers with the times that others measured: rank correlation and mean absolute error on the half of
the networks that the calibration has not seen, beside those of counted multiply-adds (scaled to fit
the seen half). The data say nothing of the runtime; `ASSUMED` says what is taken for granted.
`measured` times networks here, and prints the roofline's error before and after calibration, each
network being estimated from the others.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ASSUMED = {
    "accel_nasbench A100": "batch 128, float16, 224 x 224, fused; ms = 128 / throughput",
    "fbnet 2080 Ti": "batch 32, float32, 32 x 32 as in HW-NAS-Bench, no fusion",
    "nasbench201 2080 Ti": "batch 32, float32, no fusion",
    "nasbench201 1080 Ti": "batch 1, float32, no fusion",
}


def accel_nasbench(row: np.ndarray):
    """A network of Accel-NASBench (arXiv 2404.08005): 7 MnasNet blocks of expand, kernel, layers
    and squeeze-and-excitation, between EfficientNet-B0's widths."""
    from families.mnasnet import Block, Config, build

    widths, strides = (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 2, 1, 2, 1)
    blocks = tuple(
        Block("mbconv", kernel, stride, filters, repeats, expand=expand, se_ratio=0.25 * squeeze)
        for (expand, kernel, repeats, squeeze), filters, stride in zip(
            row.reshape(7, 4).tolist(), widths, strides, strict=True
        )
    )
    return build(Config((224, 224, 3), 1000, 32, 2, blocks))


def fbnet(row: np.ndarray):
    """A network of FBNet's space (arXiv 1812.03443) for CIFAR images, as in HW-NAS-Bench."""
    import keras
    from keras import layers

    def norm(x, relu=True):
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if relu else x

    widths = [16] + [24] * 4 + [32] * 4 + [64] * 4 + [112] * 4 + [184] * 4 + [352]
    firsts = {5: 2, 9: 2, 17: 2}  # layers that halve the image; 224 x 224 would halve two more
    inputs = keras.Input((32, 32, 3))
    x = norm(layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs))
    for index, (choice, filters) in enumerate(zip(row.tolist(), widths, strict=True)):
        stride, channels = firsts.get(index, 1), x.shape[-1]
        if choice == 8:  # skip; where sizes change, a 1x1 convolution
            if stride > 1 or channels != filters:
                x = norm(layers.Conv2D(filters, 1, stride, use_bias=False)(x))
            continue
        kernel, expand = (3, 3, 3, 3, 5, 5, 5, 5)[choice], (1, 1, 3, 6)[choice % 4]
        groups = 2 if choice % 4 == 1 else 1
        y = norm(layers.Conv2D(channels * expand, 1, groups=groups, use_bias=False)(x))
        y = norm(layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False)(y))
        y = norm(layers.Conv2D(filters, 1, groups=groups, use_bias=False)(y), relu=False)
        x = layers.Add()([x, y]) if stride == 1 and channels == filters else y
    x = norm(layers.Conv2D(1504, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(100)(x))


def nasbench201(row: np.ndarray):
    """A network of NAS-Bench-201 (arXiv 2001.00326) for 32 x 32 images and 100 classes."""
    import keras
    from keras import layers

    def conv(x, filters, kernel, stride=1):
        x = layers.ReLU()(x)
        x = layers.Conv2D(filters, kernel, stride, "same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    def edge(x, operation):
        if operation == 0:  # a framework that compiles nothing computes the zeros, too
            return layers.Rescaling(0.0)(x)
        if operation == 4:
            return layers.AveragePooling2D(3, 1, "same")(x)
        return x if operation == 1 else conv(x, x.shape[-1], 1 if operation == 2 else 3)

    inputs = keras.Input((32, 32, 3))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs))
    for stage, filters in enumerate((16, 32, 64)):
        if stage:
            shortcut = layers.Conv2D(filters, 1, use_bias=False)(layers.AveragePooling2D(2)(x))
            x = layers.Add()([conv(conv(x, filters, 3, 2), filters, 3), shortcut])
        for _ in range(5):
            nodes, operations = [x], iter(row.tolist())
            for node in range(1, 4):
                parts = [edge(nodes[source], next(operations)) for source in range(node)]
                nodes.append(parts[0] if node == 1 else layers.Add()(parts))
            x = nodes[3]
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(x)))


def published(arguments) -> None:
    """The rooflines against the published measurements."""
    folder = Path(arguments.data) / "nas"
    accel, fb, nb = (
        np.load(folder / f"{name}.npz")
        for name in ("accel_nasbench_dev", "fbnet_latency_dev", "nasbench201_cifar100")
    )
    cases = {
        "accel_nasbench A100": (
            *("a100", "float16", 128, accel["arch"], accel_nasbench),
            128e3 / accel["throughput_a100"],
        ),
        "fbnet 2080 Ti": ("rtx2080ti", "float32", 32, fb["arch"], fbnet, fb["lat_2080ti_32"]),
        "nasbench201 2080 Ti": (
            *("rtx2080ti", "float32", 32, nb["ops"], nasbench201),
            nb["lat_2080ti_32"],
        ),
        "nasbench201 1080 Ti": (
            *("gtx1080ti", "float32", 1, nb["ops"], nasbench201),
            nb["lat_1080ti_1"],
        ),
    }
    print(f"{'':22}{'rank correlation':>32}{'mean absolute error':>34}")
    print(f"{'':22}{'MACs':>10}{'before':>11}{'after':>11}{'MACs':>12}{'before':>11}{'after':>11}")
    for name, case in cases.items():
        if arguments.case in name:
            _compare(name, *case, arguments, accel)
    print("\nassumed: " + "; ".join(f"{name}: {text}" for name, text in ASSUMED.items()))


def _compare(name, chip, dtype, batch, rows, build, measured_ms, arguments, accel) -> None:
    from scipy.stats import spearmanr

    from latency.networks import count
    from latency.roofline import gpu_chips, kernel_times

    order = np.random.default_rng(arguments.seed).permutation(len(rows))
    points, macs = [], []
    for index in order[: arguments.networks]:
        model = build(rows[index])
        counted = count.count(model)
        if build is accel_nasbench:
            _check(counted, accel["mmacs"][index], accel["mparams"][index])
        fusion = "elementwise" if build is accel_nasbench else "none"
        kernels, _ = kernel_times.layer_graph(model, batch, dtype, fusion)
        points.append((kernels, float(measured_ms[index])))
        macs.append(counted.macs)
    half = len(points) // 2
    gpu = gpu_chips.chip(chip)
    fitted = kernel_times.fit(points[:half], gpu, dtype, kernel_times.Rates())
    real = np.array([ms for _, ms in points])
    linear = np.polyfit(macs[:half], real[:half], 1)
    estimates = [np.polyval(linear, macs)] + [
        np.array([kernel_times.total_ms(kernels, gpu, dtype, rates) for kernels, _ in points])
        for rates in (kernel_times.Rates(), fitted)
    ]
    ranks = [spearmanr(one[half:], real[half:]).statistic for one in estimates]
    errors = [np.mean(np.abs(one[half:] / real[half:] - 1)) for one in estimates]
    print(
        f"{name:22}{ranks[0]:10.3f}{ranks[1]:11.3f}{ranks[2]:11.3f}"
        f"{errors[0]:12.1%}{errors[1]:11.1%}{errors[2]:11.1%}   {half} networks fitted, "
        f"{len(points) - half} held out; launch {fitted.launch_us:.1f} us"
    )


def _check(counted, mmacs: float, mparams: float) -> None:
    """Our network is the file's: its parameters, and its multiply-adds plus what its counter adds.

    That counter gives batch normalization 4 operations an element, and counts the pooled elements
    and the bias.
    """
    norms = sum(row.output_bytes / 4 for row in counted.layers if row.type == "BatchNormalization")
    pooled = sum(
        row.input_bytes / 4 for row in counted.layers if row.type == "GlobalAveragePooling2D"
    )
    ours = (counted.macs + 4 * norms + pooled) / 1e6
    assert abs(counted.trainable_params / 1e6 - mparams) < 1e-5 * mparams, (counted, mparams)
    assert abs(ours - mmacs) < 0.005 * mmacs, (ours, mmacs)


def conformer(frames=256, width=256, heads=4):
    """A Conformer block (arXiv 2005.08100) of stock layers."""
    import keras
    from keras import layers, ops

    def feed_forward(x):
        y = layers.Dense(4 * width, activation="swish")(layers.LayerNormalization()(x))
        return layers.Add()([x, 0.5 * layers.Dense(width)(y)])

    inputs = keras.Input((frames, width))
    x = feed_forward(inputs)
    y = layers.LayerNormalization()(x)
    query, key, value = (
        layers.Reshape((frames, heads, width // heads))(layers.Dense(width)(y)) for _ in range(3)
    )
    y = ops.dot_product_attention(query, key, value)
    x = layers.Add()([x, layers.Dense(width)(layers.Reshape((frames, width))(y))])
    y = layers.Dense(2 * width)(layers.LayerNormalization()(x))
    y = y[:, :, :width] * ops.sigmoid(y[:, :, width:])
    y = layers.DepthwiseConv1D(31, padding="same")(y)
    y = layers.Activation("swish")(layers.BatchNormalization()(y))
    x = feed_forward(layers.Add()([x, layers.Dense(width)(y)]))
    return keras.Model(inputs, layers.LayerNormalization()(x), name="conformer_block")


def decoder(tokens=256, width=512, heads=8):
    """A decoder block with causal attention and a gated feed-forward layer."""
    import keras
    from keras import layers, ops

    inputs = keras.Input((tokens, width))
    y = layers.RMSNormalization()(inputs)
    query, key, value = (
        layers.Reshape((tokens, heads, width // heads))(layers.Dense(width, use_bias=False)(y))
        for _ in range(3)
    )
    y = ops.dot_product_attention(query, key, value, is_causal=True)
    y = layers.Dense(width, use_bias=False)(layers.Reshape((tokens, width))(y))
    x = layers.Add()([inputs, y])
    y = layers.RMSNormalization()(x)
    gate = layers.Dense(1408, activation="swish", use_bias=False)(y)
    y = layers.Multiply()([gate, layers.Dense(1408, use_bias=False)(y)])
    outputs = layers.Add()([x, layers.Dense(width, use_bias=False)(y)])
    return keras.Model(inputs, outputs, name="decoder_block")


def measured(arguments) -> None:
    """An attached GPU against its own rooflines."""
    import keras

    from families import mnasnet
    from latency.gpu import GPU
    from latency.roofline import kernel_times

    attached = GPU(dtype=arguments.dtype, how="measured")
    print(f"{attached.device}, {arguments.dtype}")
    models = {
        "mnasnet:a1": mnasnet.build(mnasnet.VARIANTS["a1"]),
        "efficientnet_b0": keras.applications.EfficientNetB0(weights=None),
        "conformer block": conformer(),
        "decoder block": decoder(),
    }
    times = {
        (name, batch): attached.profile(model, batch, runs=arguments.runs)
        for name, model in models.items()
        for batch in (1, 32, 128)
    }
    for how in ("layers", "compiled"):
        target = GPU(dtype=arguments.dtype, how=how)
        chip = target._chip()
        points = {
            (name, batch): (target.costs(models[name], batch)[0], latency.median_ms)
            for (name, batch), latency in times.items()
        }
        print(f"\n{how}: {'network':18}{'batch':>6}{'measured':>12}{'before':>10}{'after':>10}")
        errors = []
        for (name, batch), (kernels, real) in points.items():
            others = [point for key, point in points.items() if key[0] != name]
            fitted = kernel_times.fit(others, chip, arguments.dtype, kernel_times.Rates())
            estimates = [
                kernel_times.total_ms(kernels, chip, arguments.dtype, rates)
                for rates in (kernel_times.Rates(), fitted)
            ]
            errors.append([abs(estimate / real - 1) for estimate in estimates])
            stable = "" if times[name, batch].conditions.get("stable", True) else "  not stable"
            print(
                f"{'':10}{name:18}{batch:6}{real:10.3f}ms{estimates[0]:8.3f}ms"
                f"{estimates[1]:8.3f}ms{stable}"
            )
        before, after = np.mean(errors, axis=0)
        print(f"mean absolute error {before:.1%} before, {after:.1%} after (network left out)")
        if arguments.keep:
            kept = target.calibrate(list(points.values()))
            print(f"kept: {kept['points']} points, {kept['after']:.1%} on themselves")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = parser.add_subparsers(dest="section", required=True)
    section = sections.add_parser("published")
    section.add_argument("--networks", type=int, default=60, help="of each data set")
    section.add_argument("--case", default="", help="only those with this in their name")
    section.add_argument("--seed", type=int, default=0)
    section.add_argument(
        "--data", default=os.environ.get("NAS_DATA", ROOT.parent / "shared" / "data")
    )
    section.set_defaults(run=published)
    section = sections.add_parser("measured")
    section.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    section.add_argument("--runs", type=int, default=50)
    section.add_argument("--keep", action="store_true", help="use the calibration from now on")
    section.set_defaults(run=measured)
    arguments = parser.parse_args()
    from latency.target import TargetUnavailable

    try:
        arguments.run(arguments)
    except TargetUnavailable as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
