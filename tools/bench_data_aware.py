"""Rounding on unlabelled inputs, beside the quantizer library's own recipes on the same network.

    NAS_DATA=... python tools/bench_data_aware.py [--seeds 3] [--only resnet8] [--table]

MLPerf Tiny's ResNet-8 (150 of CIFAR-10's images as JPEG to round on, judged on the official 200 and
by its agreement with the float network on 500 others) and its keyword spotter (150 of its 1,000
evaluation inputs to round on, judged on the last 500). Files are run by LiteRT. Rows are kept in
`tools/results/data_aware.jsonl`; the same command goes on with the others.
"""

import argparse
import contextlib
import io
import os
import pathlib
import tempfile
import time

import numpy as np
from rows import append, read

import nas
from compress.ptq import PTQ
from latency.tflite import convert

DATA = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data"))
RESULTS = pathlib.Path(__file__).parent / "results" / "data_aware.jsonl"
BITS = (8, 4, 3, 2)
PEERS = (
    "MIN_MAX_UNIFORM_QUANT",
    "OCTAV",
    "MSE",
)  # of ai-edge-quantizer: weights at 4 bits, float activations


def main() -> None:
    """Append a row for each network, way, width and seed that has none; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("resnet8", "kws"))
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    arguments = parser.parse_args()
    found = read(RESULTS)
    have = {(row["network"], row["way"], row["bits"], row["seed"]) for row in found}
    for name, load in () if arguments.table else (("resnet8", resnet8), ("kws", kws)):
        if arguments.only in (None, name):
            network, inputs, judge = load()
            for row in rows(name, network, inputs, judge, arguments.seeds, have):
                append(RESULTS, row)
                found.append(row)
                print(row, flush=True)
    print(table(found))


def rows(name, network, inputs, judge, seeds, have):
    """Each row that is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "float.tflite")
        nas.compress(network, [], out=[file])
        if (name, "float", 32, 0) not in have:
            yield row(name, "float", 32, 0, judge(file), file, 0.0)
        for way in PEERS:
            if (name, way, 4, 0) not in have:
                began, made = time.process_time(), pathlib.Path(folder, "peer.tflite")
                reason = by_library(file, way, made)
                if reason is None:
                    yield row(name, way, 4, 0, judge(made), made, time.process_time() - began)
                else:
                    print(f"{name} {way}: {reason}", flush=True)
        for seed in range(seeds):
            chosen = np.random.default_rng(seed).permutation(len(inputs))[:150]
            for bits in BITS:
                for way, method in (
                    ("data", PTQ(bits, activations=None)),
                    ("data, integer activations", PTQ(bits)),
                    ("nearest", PTQ(bits, activations=None, rounding="nearest")),
                ):
                    if (name, way, bits, seed) in have or (way == "nearest" and seed):
                        continue
                    began, made = time.process_time(), pathlib.Path(folder, "ours.tflite")
                    done = nas.compress(network, method, inputs[chosen], by_layer=False)
                    spent = time.process_time() - began
                    done.write(made)
                    yield row(name, way, bits, seed, judge(made), made, spent)


def row(name, way, bits, seed, judged, file, spent):
    """One line of the results."""
    facts = {"network": name, "way": way, "bits": bits, "seed": seed}
    return facts | judged | {"bytes": file.stat().st_size, "cpu_s": round(spent, 1)}


def by_library(file: pathlib.Path, way: str, made: pathlib.Path) -> str | None:
    """Weights at 4 bits, activations quantized on the fly, by ai-edge-quantizer; why not, if so."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    algorithm = getattr(algorithm_manager.AlgorithmName, way, None)
    if algorithm is None:
        return "no such algorithm in this version"
    recipe.add_dynamic_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        num_bits=4,
        algorithm_key=algorithm,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tool = quantizer.Quantizer(str(file), recipe.get_quantization_recipe())
            made.write_bytes(bytes(tool.quantize().quantized_model))
    except (ValueError, RuntimeError, KeyError) as error:
        return str(error).splitlines()[0]
    return None


def resnet8():
    """(network, inputs to round on, a judge of files)."""
    from PIL import Image

    pictures = np.load(DATA / "images" / "cifar10_jpeg_10k.npz")
    ends = np.r_[0, pictures["end"]]
    jpegs = [pictures["jpeg"][a:b].tobytes() for a, b in zip(ends[:650], ends[1:651], strict=True)]
    images = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in jpegs]).astype("float32")
    official = np.load(DATA / "checkpoints" / "eval_ic01.npz")
    network = nas.open(DATA / "checkpoints" / "pretrainedResnet.h5")
    answers = np.asarray(network.model(images[150:], training=False)).argmax(1)

    def judge(file):
        own = convert.run(file, official["x"].astype("float32")).argmax(1)
        others = convert.run(file, images[150:]).argmax(1)
        return {
            "accuracy": float((own == official["y"]).mean()),
            "agreement": float((others == answers).mean()),
        }

    return network, images[:150], judge


def kws():
    """The same of the keyword spotter."""
    kept = np.load(DATA / "checkpoints" / "eval_kws01_mfcc_int8.npz")
    inputs = ((kept["x"].astype("float32") - 83) * 0.58470).reshape(-1, 49, 10, 1)
    network = nas.open(DATA / "checkpoints" / "kws_ref_model")
    answers = np.asarray(network.model(inputs[500:], training=False)).argmax(1)

    def judge(file):
        found = convert.run(file, inputs[500:]).argmax(1)
        return {
            "accuracy": float((found == kept["y"][500:]).mean()),
            "agreement": float((found == answers).mean()),
        }

    return network, inputs[:500], judge


def table(found: list[dict]) -> str:
    """Means over seeds."""
    lines = [f"{'network':10} {'way':28} bits  accuracy  agreement    bytes  CPU s  seeds"]
    keys = dict.fromkeys((row["network"], row["way"], row["bits"]) for row in found)
    for key in keys:
        same = [row for row in found if (row["network"], row["way"], row["bits"]) == key]
        means = {
            name: float(np.mean([row[name] for row in same]))
            for name in ("accuracy", "agreement", "bytes", "cpu_s")
        }
        lines.append(
            f"{key[0]:10} {key[1]:28} {key[2]:4} {means['accuracy']:9.3f}"
            f" {means['agreement']:10.3f} {means['bytes']:8.0f} {means['cpu_s']:6.1f} {len(same):6}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
