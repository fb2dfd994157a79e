"""What `nas compress` makes of checkpoints that others trained: ResNet-8 and keyword spotting.

    NAS_DATA=... python tools/bench_compress.py [--rows resnet8 kws8 ...] [--out FOLDER]

MLPerf Tiny's networks (github.com/mlcommons/tiny): ResNet-8 for CIFAR-10, judged on its official
200 images and tuned on 10,000 JPEG images; the DS-CNN for Speech Commands, judged on its 1,000
inputs, 100 of which calibrate: no training data. Each row is one command, printed with its figures.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import shlex
import tempfile

from nas.cli.command_line import main as nas

DATA = pathlib.Path(os.environ.get("NAS_DATA", "../shared/data"))
RESNET = [f"{DATA}/checkpoints/pretrainedResnet.h5", "--task"]
RESNET += ["npz:images/cifar10_jpeg_10k.npz,scale=1,valid=checkpoints/eval_ic01.npz"]
INPUTS = "checkpoints/eval_kws01_mfcc_int8.npz"
KWS = [f"{DATA}/checkpoints/kws_ref_model", "--examples", "100", "--task"]
KWS += [f"npz:{INPUTS},offset=83,factor=0.5847,valid={INPUTS},shape=49x10x1"]
ROWS = {
    "resnet8": [*RESNET, "--method", "ptq:8"],
    "resnet4": [*RESNET, "--method", "qat:4", "--method", "distill", "--epochs", "4"],
    "resnet80": [*RESNET, "--method", "prune:0.8,scope=global,end=0.3"]
    + ["--method", "distill:weight=1.0,temperature=4.0", "--epochs", "40"]
    + ["--learning-rate", "6e-3", "--ema", "0.995", "--batch-size", "128"],
    "kws8": [*KWS, "--method", "ptq:8"],
    "kws4": [*KWS, "--method", "ptq:4"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=pathlib.Path, default=None, help="keep the files here")
    arguments = parser.parse_args()
    os.environ["NAS_DATA"] = str(DATA)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out or pathlib.Path(scratch)
        for name in arguments.rows:
            row = ["compress", *ROWS[name], "--out", f"{folder / name}.tflite"]
            row += ["--target", "cpu:threads=1", "--no-sensitivity"]
            print(f"nas {shlex.join(row)}", flush=True)
            told = io.StringIO()
            with contextlib.redirect_stdout(told):
                status = nas([*row, "--json"])
            if status:
                raise SystemExit(status)
            print(line(name, json.loads(told.getvalue())), flush=True)


def line(name: str, record: dict) -> str:
    """Quality of the file, bytes, latency: before and after."""
    before, after = record["files"][0]["before"], record["files"][0]["after"]
    gained = 100 * (after["quality"] - before["quality"])
    ms = [record[side]["latency"]["cpu:threads=1"]["median_ms"] for side in ("before", "after")]
    return (
        f"{name}: {100 * before['quality']:.1f} % -> {100 * after['quality']:.1f} % "
        f"({gained:+.1f} points), {before['bytes']:,} -> {after['bytes']:,} bytes "
        f"(zipped {before['zipped_bytes']:,} -> {after['zipped_bytes']:,}), "
        f"{after['bits_per_weight']:.2f} bits a weight, {ms[0]:.4f} -> {ms[1]:.4f} ms, "
        f"{record['after']['nonzeros'] / record['before']['nonzeros']:.3f} of the non-zeros"
    )


if __name__ == "__main__":
    main()
