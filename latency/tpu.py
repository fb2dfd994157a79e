"""TPUs: timed by JAX where attached, else compiled by Google's TPU compiler and estimated."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, ClassVar

from latency.jax_runtime import process
from latency.networks import keras_file
from latency.roofline import device_limits, explanation
from latency.roofline.explanation import Explanation
from latency.system import device_lock
from latency.system.json_records import utc_now
from latency.system.spared import keep_json
from latency.target import (
    DoesNotFit,
    FoundDevice,
    Kind,
    Latency,
    Target,
    TargetUnavailable,
    Timing,
    cache_directory,
)
from latency.tpu_compiler import calibration as tpu_calibration
from latency.tpu_compiler import chips
from latency.tpu_compiler import compile as tpu_compile

_LIMIT_S = 1800.0  # the slowest network tried, EfficientNet-B4 at 380 pixels, compiles in 170 s
_LOOK_S = 120.0  # to ask JAX for its devices
_DTYPES = ("bfloat16", "float32")
_DEVICE_FILES = ("accel0", "vfio/0")  # below /dev: TPU v4 and before; v5 and later


@dataclasses.dataclass(frozen=True)
class TPU(Target):
    """An attached TPU, or with `chip` any generation: v2, v3, v4, v5e, v5p, v6e, 7x.

    Where a TPU is attached, and it is of that generation, it runs the network: MEASURED. Else the
    network is compiled for it ahead of time by the compiler that the TPU would use (libtpu), and
    the estimate is COMPILED: each fused operation takes the longer of its cycles at the chip's
    clock and its HBM traffic at the chip's bandwidth, and their sum is not less than all traffic.
    Cycles are those of the static VLIW schedule, or `schedule` false, and where an operation has
    none, the compiler's own estimate. It lacks waiting for the memory's first bytes and the host:
    right for comparing networks, and low at small batches.

    A device is what JAX calls one: one of the two TensorCores of a v2, v3 and 7x chip. With
    `topology` ("2x4", on v4, v5p and 7x "2x2x1") all devices of a slice share the batch in equal
    parts. `dtype` is "bfloat16" (weights, inputs and computation) or "float32". `calibration`: a
    file of measured points (`tpu_calibration`), by default the one in the user's cache, if any.

    Raises `DoesNotFit`, a `ValueError`, where the network needs more memory than the device has.

    >>> TPU("v5e").device
    'TPU v5e, one chip'
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED, Kind.COMPILED})
    chip: str | None = None
    dtype: str = "bfloat16"
    topology: str | None = None
    schedule: bool = True
    calibration: str | None = None

    def __post_init__(self):
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: expected one of {', '.join(_DTYPES)}")
        if self.chip is not None:
            chips.device_count(self._chip(), self.topology)
        elif self.topology is not None:
            raise ValueError(f"topology={self.topology!r} needs a chip, e.g. tpu:v5e,topology=2x4")

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        kinds, reason = attached_devices()
        if kinds:
            return [FoundDevice("tpu", f"{kinds[0]}, {len(kinds)} devices", Kind.MEASURED)]
        missing = None
        try:
            compiler = f"libtpu {tpu_compile.versions()['libtpu']}"
        except TargetUnavailable as error:
            compiler, missing = "libtpu", str(error)
        here = [FoundDevice("tpu", "TPU", Kind.MEASURED, reason)] if reason else []
        return here + [
            FoundDevice(f"tpu:{name}", f"{chip.device}, through {compiler}", Kind.COMPILED, missing)
            for name, chip in chips.CHIPS.items()
        ]

    @property
    def device(self) -> str:
        if self._measures():
            count = 1 if self.chip is None else self._count()
            return attached_devices()[0][0] + (f", {count} devices" if count > 1 else "")
        chip = self._chip()
        return f"TPU {chip.name}, {self.topology} slice" if self.topology else chip.device

    def identity(self) -> dict[str, Any]:
        """Kind, device and versions; for estimates the calibration too."""
        measures = self._measures()
        about = {
            "kind": (Kind.MEASURED if measures else Kind.COMPILED).value,
            "device": self.device,
            "runtime": _runtime(),
            "dtype": self.dtype,
        }
        if measures:
            return about
        return about | {
            "chip": self.chip,
            "topology": self.topology,
            "schedule": self.schedule,
            "format": tpu_compile.FORMAT,
            "calibration": dataclasses.asdict(self._calibration()),
        }

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        """Times the network, or estimates it: one sample. `details`: the time of each layer."""
        if not self._measures():
            return self._estimated(self.compile(model, batch_size), batch_size, details)
        request = {
            "operation": "time",
            "platform": "tpu",
            "dtype": self.dtype,
            "batch_size": batch_size,
            "warmup": warmup,
            "runs": runs,
            "devices": 1 if self.chip is None else self._count(),
        }
        with device_lock.alone("tpu", "the TPU"):
            answer = process.ask(request, model, environment=_ATTACHED, limit_s=_LIMIT_S)
        conditions = answer["conditions"] | {"date": utc_now()}
        return Timing(tuple(answer["samples_ms"]), conditions, Kind.MEASURED, answer["memory_mb"])

    def compile(self, model: Any, batch_size: int) -> dict[str, Any]:
        """What the compiler made of `model`: its operations with cycles and bytes, memory, FLOPs.

        Kept in the user's cache by the content of the .keras file, and by the program itself
        (StableHLO), with versions, chip, topology, type and batch size: a known file costs nothing,
        a known program no compilation. Raises `DoesNotFit` as the compiler does.
        """
        request = {
            "operation": "tpu_compiler.compile.compile_model",
            "platform": "tpu",
            "chip": self._chip().name,
            "topology": self.topology,
            "dtype": self.dtype,
            "batch_size": batch_size,
        }
        folder = cache_directory() / "tpu"
        index = None
        if text := _content(model):
            # The operation under its first name: what was compiled before is still found.
            named = request | {"operation": "tpu_compile.compile_model"}
            about = [named, tpu_compile.FORMAT, tpu_compile.versions(), text]
            key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
            index = folder / f"{key}.program.json"
        record = _record(folder, _read(index) if index else None)
        if record is None:
            with tempfile.TemporaryDirectory(prefix="nas_tpu_") as dump:
                answer = process.ask(
                    request | {"dump": dump, "cache": str(folder), "weights": False},
                    model,
                    environment=tpu_compile.environment(Path(dump)),
                    limit_s=_LIMIT_S,
                )
            if index:
                keep_json(index, {"program": answer["program"]})
            record = answer.get("record") or _record(folder, answer)
            assert record is not None, "the worker keeps the record that it names, or gives it"
        if short := record.get("out_of_memory"):
            raise DoesNotFit(
                f"{self.device}, batch {batch_size}, {self.dtype}: {short['message']}",
                short["needed_mb"],
                short["available_mb"],
            )
        return record

    def calibrate(self, models: list[Any], batch_size: int = 1, runs: int = 50) -> Any:
        """Measures and compiles `models` on the attached TPU and keeps the pairs.

        The calibration that estimates for this chip are multiplied with from now on.
        """
        if not self._measures():
            raise TargetUnavailable(
                f"calibrating needs an attached TPU: {attached_devices()[1] or 'none'}"
            )
        target = self if self.chip else dataclasses.replace(self, chip=self._attached_chip().name)
        points = []
        for model in models:
            measured = self.profile(model, batch_size, runs=runs).median_ms
            points.append((target.estimate(target.compile(model, batch_size))[0], measured))
        return tpu_calibration.add(self._calibration_path(), target._chip().name, points)

    def estimate(self, record: dict[str, Any]) -> tuple[float, list[dict[str, Any]]]:
        """Milliseconds of a compiled network before calibration, and of each of its layers."""
        chip = self._chip()
        rows: dict[str, dict[str, Any]] = {}
        total, traffic = (record["dispatch_cycles"] or 0) / chip.clock_ghz / 1e6, 0.0
        for operation in record["operations"]:
            copying = operation["hbm_bytes"] / chip.bandwidth_gbs / 1e6
            traffic += copying * operation["times"]
            if operation["overlapped"]:
                continue
            ms = self._ms(operation)
            total += ms
            name = operation["layer"]
            kind = operation["type"] or "XLA"  # a copy into another layout, and the like
            row = {"name": name, "type": kind, "ms": 0.0, "within": "graph"}
            rows.setdefault(name, row)["ms"] += ms
        return max(total, traffic), list(rows.values())

    def explain(self, model: Any, latency: Latency) -> Explanation:
        """The compiled program's operations, whose times are COMPILED though a total be measured.

        An operation that runs beside others has none. FLOPs are the layers', bytes those of HBM.
        """
        from latency.tpu_compiler import kernels as tpu_kernels

        target = self if self.chip else dataclasses.replace(self, chip=self._attached_chip().name)
        record = target.compile(model, latency.batch_size)
        loaded = keras_file.load(Path(model)) if isinstance(model, (str, Path)) else model
        kernels, notes = tpu_kernels.kernels(record, loaded, latency.batch_size)
        ms = [None if one["overlapped"] else target._ms(one) for one in record["operations"]]
        if latency.kind is Kind.COMPILED:  # its calibration is in the operations, too
            times = latency.median_ms / self.estimate(record)[0]
            ms = [one and one * times for one in ms]
        ms += [None] * (len(kernels) - len(ms))
        limits = device_limits.of_tpu(target._chip())
        return explanation.explain(
            kernels, ms, limits=limits, latency=latency, kind=Kind.COMPILED, notes=notes
        )

    def _attached_chip(self) -> chips.Chip:
        chip = chips.of_kind(attached_devices()[0][0])
        if chip is None:
            raise ValueError(f"{self.device}: what it can do at most is not known")
        return chip

    def _ms(self, operation: dict[str, Any]) -> float:
        """The longer of an operation's cycles and its traffic, as often as it runs."""
        chip = self._chip()
        computing = self._cycles(operation)[0] / chip.clock_ghz / 1e6
        copying = operation["hbm_bytes"] / chip.bandwidth_gbs / 1e6
        return max(computing, copying) * operation["times"]

    def _cycles(self, operation: dict[str, Any]) -> tuple[int, str]:
        """The cycles of an operation, and where they are from."""
        sources = (("schedule", "cycles"), ("estimated_cycles", "estimated_cycles"))
        for source, field in sources if self.schedule else reversed(sources):
            if operation[field] is not None:
                return operation[field], source
        return 0, "traffic"

    def _estimated(self, record: dict[str, Any], batch_size: int, details: bool) -> Timing:
        estimated, rows = self.estimate(record)
        calibration = self._calibration()
        ms = calibration.apply(estimated)
        sources = [self._cycles(one)[1] for one in record["operations"] if not one["overlapped"]]
        points = calibration.points
        conditions = {
            "runtime": _runtime(),
            "chip": self.chip,
            "topology": self.topology,
            "devices": record["devices"],
            "dtype": self.dtype,
            "operations": len(sources),
            "by_schedule": sources.count("schedule"),
            "by_estimated_cycles": sources.count("estimated_cycles"),
            "by_traffic": sources.count("traffic"),
            "uncounted_loops": record["unknown_loops"],
            "calibration": f"calibrated from {points} points" if points else "none",
            "uncalibrated_ms": estimated,
            "gflops": (record["flops"] or 0) / 1e9,
            "compile_s": record["compile_s"],
            "stable": True,
            "date": utc_now(),
        }
        if record["devices"] > 1:
            share = batch_size // record["devices"]
            conditions["sharded"] = f"data parallel, {share} of the batch on each device"
        for row in rows:
            row["ms"] *= ms / estimated
        return Timing(
            samples_ms=(ms,),
            conditions=conditions,
            kind=Kind.COMPILED,
            memory_mb=record["memory_mb"],
            per_op=tuple(rows) if details else None,
            per_op_kind=Kind.COMPILED if details else None,
        )

    def _measures(self) -> bool:
        """Whether an attached TPU runs the network."""
        kinds, reason = attached_devices()
        if self.chip is None:
            if not kinds:
                names = ", ".join(f"tpu:{name}" for name in chips.CHIPS)
                raise TargetUnavailable(
                    f"no TPU is attached{f' ({reason})' if reason else ''}; compiled for one "
                    f"without it: {names}"
                )
            return True
        kind = self._chip().device_kind
        return len(kinds) >= self._count() and all(one == kind for one in kinds)

    def _chip(self) -> chips.Chip:
        """The chip to estimate, where one is named."""
        if self.chip is None:
            raise ValueError(f"{self!r}: expected a chip, e.g. tpu:v5e, to compile for")
        return chips.named(self.chip)

    def _count(self) -> int:
        return chips.device_count(self._chip(), self.topology)

    def _calibration_path(self) -> Path:
        return Path(self.calibration) if self.calibration else tpu_calibration.default_path()

    def _calibration(self) -> tpu_calibration.Calibration:
        path = self._calibration_path()
        if self.calibration and not path.is_file():
            raise ValueError(f"calibration={self.calibration}: no such file")
        return tpu_calibration.fit(tpu_calibration.read(path).get(self._chip().name, []))


_ATTACHED = {"JAX_PLATFORMS": "tpu,cpu"}


@functools.cache
def attached_devices() -> tuple[tuple[str, ...], str | None]:
    """The kinds of the attached TPU devices, and why there are none though device files exist.

    Without such a file nothing is started or imported.
    """
    if not any(Path("/dev", name).exists() for name in _DEVICE_FILES):
        return (), None
    request = {"operation": "devices", "platform": "tpu"}
    try:
        answer = process.ask(request, environment=_ATTACHED, limit_s=_LOOK_S)
    except TargetUnavailable as error:
        return (), str(error)
    return tuple(device["kind"] for device in answer["devices"]), None


def _runtime() -> str:
    found = tpu_compile.versions()
    return f"libtpu {found['libtpu']}, JAX {found['jax']}"


def _content(model: Any) -> str | None:
    """The architecture of a model in text, or None where code beyond Keras is part of it."""
    try:
        if isinstance(model, (str, Path)):
            with zipfile.ZipFile(model) as archive:
                content = json.loads(archive.read("config.json"))
        else:
            content = json.loads(model.to_json())
    except Exception:  # the worker tells what is wrong with the file, if anything is
        return None
    content.pop("compile_config", None)
    text = json.dumps(content, sort_keys=True)
    own = re.search(r'"registered_name": "[^"]*>|"module": "(?!keras[".])', text)
    return None if own else text


def _record(folder: Path, program: dict[str, Any] | None) -> dict[str, Any] | None:
    return _read(folder / f"{program['program']}.json") if program else None


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None
