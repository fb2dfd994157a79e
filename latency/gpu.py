"""NVIDIA GPUs: attached, timed by JAX; others by a roofline over XLA's kernels or the layers."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latency.jax_runtime import process
from latency.networks import keras_file
from latency.nvidia import nvidia_smi
from latency.roofline import device_limits, explanation, gpu_chips, kernel_times
from latency.roofline.explanation import Explanation
from latency.system import device_lock
from latency.system.json_records import utc_now, write_json
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

HOW = ("auto", "measured", "compiled", "layers")
_BUSY_PERCENT = 10  # utilization before a measurement above which another process is to blame
_CUDA = {
    "JAX_PLATFORMS": "cuda",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi lists them
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # others may use the GPU, too
}
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")


@dataclasses.dataclass(frozen=True)
class GPU(Target):
    """The attached GPU, or the one of `latency.roofline.gpu_chips` that `chip` names.

    `how` a figure is found: "measured" on an attached GPU; "compiled": the roofline of the kernels
    that XLA makes for the chip, which need not be there; "layers": the roofline of the network's
    layers, elementwise ones fused into what makes their input. "auto" is the first of these that
    can be had, measured only on the chip asked for: the figure's kind and conditions say which.

    `dtype` is float32 (TensorFloat-32 where the chip has it), bfloat16 or float16. A run of JAX,
    its compilation included, may take `limit_s`.

    >>> GPU("H100", dtype="bfloat16").chip
    'h100'
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.MEASURED, Kind.COMPILED, Kind.PREDICTED})
    chip: str | None = None
    dtype: str = "float32"
    how: str = "auto"
    limit_s: float = 900.0

    @classmethod
    def discover(cls) -> list[FoundDevice]:
        """The attached GPUs, and that any known one can be estimated."""
        listed = []
        for card in dict.fromkeys(one.name for one in nvidia_smi.cards()):
            chip = gpu_chips.named(card)
            name = "gpu" if chip is None else f"gpu:{chip.name}"
            listed.append(FoundDevice(name, card, Kind.MEASURED, _lacks_jax()))
        if not listed:
            missing = "no NVIDIA GPU is attached, or its driver does not answer (nvidia-smi)"
            listed = [FoundDevice("gpu", "NVIDIA GPU", Kind.MEASURED, missing)]
        estimate = Kind.PREDICTED if _lacks_jax() else Kind.COMPILED
        known = ", ".join(gpu_chips.CHIPS)
        return listed + [FoundDevice("gpu:h100", f"estimates for {known}", estimate)]

    def __post_init__(self):
        if self.chip is not None:
            object.__setattr__(self, "chip", gpu_chips.chip(str(self.chip)).name)
        if self.dtype not in kernel_times.BYTES:
            names = ", ".join(kernel_times.BYTES)
            raise ValueError(f"dtype={self.dtype!r}: expected one of {names}")
        if self.how not in HOW:
            raise ValueError(f"how={self.how!r}: expected one of {', '.join(HOW)}")
        if not isinstance(self.limit_s, (int, float)) or not 1 <= self.limit_s < float("inf"):
            raise ValueError(f"limit_s={self.limit_s!r}: expected seconds, at least 1")
        if self.chip is not None and self.how != "measured":
            gpu_chips.CHIPS[self.chip].matrix_peak(self.dtype)  # raises where it has no such units

    @property
    def device(self) -> str:
        if self._plan()[0] is Kind.MEASURED:
            return self._card().name
        return f"NVIDIA {self._chip().title}"

    def identity(self) -> dict[str, Any]:
        """The conditions under which an earlier figure still holds; its kind is one of them."""
        kind, how = self._plan()
        about: dict[str, Any] = {"kind": str(kind), "how": how, "dtype": self.dtype}
        if kind is Kind.MEASURED:
            card = self._card()
            return about | {"device": card.name, "driver": card.driver, "runtime": _runtime()}
        chip = self._chip()
        entry = self._calibration(how)
        about |= {"chip": chip.name, "calibration": entry and entry["digest"]}
        return about | ({"runtime": _runtime()} if kind is Kind.COMPILED else {})

    def measure(self, model: Any, batch_size: int, warmup: int, runs: int, details: bool) -> Timing:
        kind, how = self._plan()
        if kind is not Kind.MEASURED:
            return self._estimated(model, batch_size, kind, how)
        card = self._card()
        with device_lock.alone(f"gpu {nvidia_smi.used(card)}", card.name, anywhere=True):
            return self._measured(model, batch_size, warmup, runs)

    def costs(self, model: Any, batch_size: int = 1) -> tuple[list[kernel_times.Kernel], float]:
        """The kernels that an estimate is made of, and the megabytes that the network needs."""
        kind, how = self._plan()
        if kind is Kind.MEASURED:
            raise ValueError(f"{self!r} is measured: how=layers or how=compiled has costs")
        if how == "compiled":
            return self._compiled(model, batch_size)
        return kernel_times.layer_graph(_loaded(model), batch_size, self.dtype)

    def explain(self, model: Any, latency: Latency) -> Explanation:
        """The kernels under the chip's limits; their times are estimates, also of a measured total.

        Of an attached GPU the kernels are XLA's where its plugin compiles for it, else the layers.
        """
        target, chip = self, self._chip()
        if latency.kind is Kind.MEASURED:
            how = "layers" if _lacks_jax() or not _compilable(chip) else "compiled"
            target = dataclasses.replace(self, chip=chip.name, how=how)
        kind, how = target._plan()
        kernels, _ = target.costs(model, latency.batch_size)
        entry = target._calibration(how)
        rates = kernel_times.Rates(**entry["rates"]) if entry else kernel_times.Rates()
        ms = kernel_times.times_ms(kernels, chip, self.dtype, rates).tolist()
        limits = device_limits.of_gpu(chip, self.dtype, rates.launch_us)
        return explanation.explain(kernels, ms, limits=limits, latency=latency, kind=kind)

    def calibrate(
        self, points: Sequence[tuple[Sequence[kernel_times.Kernel], float]]
    ) -> dict[str, Any]:
        """Fits the efficiencies to measurements, (`costs`, milliseconds) each, and keeps them.

        Later estimates for this chip, dtype and `how` use them. Returns what is kept: the rates,
        and the mean absolute error on the points themselves "before" and "after", as a share.
        """
        kind, how = self._plan()
        chip = self._chip()
        if kind is Kind.MEASURED:
            raise ValueError(f"{self!r} is measured: how=layers or how=compiled is calibrated")
        rates = kernel_times.fit(points, chip, self.dtype, kernel_times.Rates())
        entry = {
            "rates": dataclasses.asdict(rates),
            "points": len(points),
            "before": _error(points, chip, self.dtype, kernel_times.Rates()),
            "after": _error(points, chip, self.dtype, rates),
            "date": utc_now(),
        }
        entry["digest"] = _digest(entry["rates"])
        path = _calibrations(chip.name)
        kept = _read(path) | {f"{how} {self.dtype}": entry}
        write_json(path, kept)
        return entry

    def _plan(self) -> tuple[Kind, str]:
        """The kind of this target's figures now, and how they are found."""
        if self.how == "layers":
            return Kind.PREDICTED, "layers"
        if self.how == "compiled":
            return Kind.COMPILED, "compiled"
        if self.how == "measured" or self.chip is None or self._attached():
            return Kind.MEASURED, "measured"
        if _lacks_jax() or not _compilable(self._chip()):
            return Kind.PREDICTED, "layers"
        return Kind.COMPILED, "compiled"

    def _attached(self) -> bool:
        chip = self._chip()
        return any(chip.matches(card.name) for card in nvidia_smi.cards())

    def _chip(self) -> gpu_chips.Chip:
        """The chip to estimate: the one asked for, else that of the attached GPU."""
        if self.chip is not None:
            return gpu_chips.CHIPS[self.chip]
        card = self._card()
        chip = gpu_chips.named(card.name)
        if chip is None:
            known = ", ".join(gpu_chips.CHIPS)
            raise ValueError(f"no specification of {card.name} is known (known: {known})")
        return chip

    def _card(self) -> nvidia_smi.Card:
        """The attached GPU to use."""
        cards = nvidia_smi.cards()
        if not cards:
            example = f"gpu:{self.chip},how=layers" if self.chip else "gpu:h100"
            reason = "its driver does not answer" if nvidia_smi.present() else "none is attached"
            raise TargetUnavailable(
                f"no NVIDIA GPU can be used here: {reason}; for an estimate name a chip, "
                f"--target {example} (known: {', '.join(gpu_chips.CHIPS)})"
            )
        if self.chip is None:
            return cards[0]
        chip = gpu_chips.CHIPS[self.chip]
        card = next((one for one in cards if chip.matches(one.name)), None)
        if card is None:
            raise TargetUnavailable(
                f"{chip.title} is not attached ({cards[0].name} is); --target gpu:{self.chip} "
                "without how=measured estimates it"
            )
        return card

    def _measured(self, model: Any, batch_size: int, warmup: int, runs: int) -> Timing:
        before = self._card()
        request = {
            "operation": "time",
            "platform": "cuda",
            "dtype": self.dtype,
            "batch_size": batch_size,
            "warmup": warmup,
            "runs": runs,
        }
        _reach()
        answer = process.ask(request, model, environment=_CUDA, limit_s=self.limit_s)
        conditions = answer["conditions"]
        used = conditions.get("device_kind", before.name)
        if self.chip is not None and not gpu_chips.CHIPS[self.chip].matches(used):
            raise TargetUnavailable(
                f"JAX's first GPU is {used}, not {self.chip}: choose with CUDA_VISIBLE_DEVICES"
            )
        after = next((card for card in nvidia_smi.cards() if card.name == used), before)
        busy = before.state.get("utilization_percent", 0)
        if isinstance(busy, (int, float)) and busy > _BUSY_PERCENT:
            reasons = [conditions.get("reason"), f"the GPU was already in use ({busy} %)"]
            conditions |= {"stable": False, "reason": "; ".join(filter(None, reasons))}
        conditions |= {
            "how": "measured",
            "driver": before.driver,
            "before": before.state,
            "after": after.state,
            "date": utc_now(),
        }
        return Timing(
            tuple(answer["samples_ms"]), conditions, Kind.MEASURED, memory_mb=answer["memory_mb"]
        )

    def _estimated(self, model: Any, batch_size: int, kind: Kind, how: str) -> Timing:
        chip = self._chip()
        model = _loaded(model) if how == "layers" else model
        kernels, memory_mb = self.costs(model, batch_size)
        if memory_mb > chip.memory_gb * 1e3:
            raise DoesNotFit(
                f"batch {batch_size} needs {memory_mb:.0f} MB, {chip.title} has "
                f"{chip.memory_gb * 1e3:.0f} MB",
                memory_mb,
                chip.memory_gb * 1e3,
            )
        entry = self._calibration(how)
        rates = kernel_times.Rates(**entry["rates"]) if entry else kernel_times.Rates()
        times = kernel_times.times_ms(kernels, chip, self.dtype, rates)
        total = kernel_times.total_ms(kernels, chip, self.dtype, rates)
        basis = f"calibrated from {entry['points']} points" if entry else "public specifications"
        conditions = {
            "how": how,
            "estimate": f"roofline of {len(kernels)} kernels, {basis}",
            "calibration": entry and {k: entry[k] for k in ("points", "before", "after", "date")},
            "chip": chip.title,
            "specification": chip.source,
            "dtype": "float32 (TF32)"
            if self.dtype == "float32" and "tf32" in chip.tensor
            else self.dtype,
            "runtime": _runtime() if kind is Kind.COMPILED else "layer graph",
            "attached": [card.name for card in nvidia_smi.cards()] or None,
            "stable": True,
            "date": utc_now(),
        }
        if how == "layers" and (uncounted := _uncounted(model)):
            names = ", ".join(uncounted[:3]) + (", ..." if len(uncounted) > 3 else "")
            reason = f"too low: what {len(uncounted)} layers multiply is not counted ({names})"
            conditions |= {"stable": False, "reason": f"{reason}; how=compiled counts all"}
        rows = tuple(
            {"name": one.name, "type": f"{one.op_class} ({one.type})", "ms": float(ms)}
            | {"within": "graph"}
            for one, ms in zip(kernels, times, strict=True)
        )
        return Timing(
            (total,), conditions, kind, memory_mb=memory_mb, per_op=rows, per_op_kind=kind
        )

    def _compiled(self, model: Any, batch_size: int) -> tuple[list[kernel_times.Kernel], float]:
        """The kernels that XLA makes; compiled once for a network, chip and version of XLA."""
        chip = self._chip()
        if (missing := _lacks_jax()) is not None:
            raise TargetUnavailable(f"{missing}; how=layers needs neither")
        if not _compilable(chip):
            raise ValueError(f"how=compiled: JAX {_runtime()} compiles nothing for {chip.title}")
        about = [_architecture(model), chip.name, self.dtype, batch_size, _runtime()]
        path = cache_directory() / "gpu" / "compiled" / f"{_digest(about)}.json"
        answer = _read(path)
        if not answer:
            request = {
                "operation": "nvidia.compile.kernels",
                "platform": "cuda",
                "chip": chip.name,
                "dtype": self.dtype,
                "batch_size": batch_size,
            }
            # Without "cpu" the plugin looks for CUDA itself, and fails.
            environment = {"JAX_PLATFORMS": "cpu"}
            answer = process.ask(request, model, environment=environment, limit_s=self.limit_s)
            keep_json(path, answer)
        return [kernel_times.Kernel(**row) for row in answer["kernels"]], answer["memory_mb"]

    def _calibration(self, how: str) -> dict[str, Any] | None:
        """What `calibrate` kept for this chip."""
        return _read(_calibrations(self._chip().name)).get(f"{how} {self.dtype}")


def _error(
    points: Sequence[tuple[Sequence[kernel_times.Kernel], float]],
    chip: gpu_chips.Chip,
    dtype: str,
    rates: kernel_times.Rates,
) -> float:
    """The mean absolute error of the estimates, as a share of what was measured."""
    shares = [kernel_times.total_ms(costs, chip, dtype, rates) / ms - 1 for costs, ms in points]
    return float(np.mean(np.abs(shares)))


def _loaded(model: Any) -> Any:
    """The Keras model of a `.keras` file; a model as it is."""
    if not isinstance(model, (str, Path)):
        return model
    path = Path(model)
    if path.suffix != ".keras":
        raise ValueError(f"{path}: GPU targets need a .keras file or a Keras model")
    return keras_file.load(path)


def _uncounted(model: Any) -> tuple[str, ...]:
    """The layers of which only their code knows what they multiply."""
    from latency.networks import count

    return count.count(model).uncounted


def _architecture(model: Any) -> str:
    """What tells a network's kernels apart: its architecture, whatever its weights."""
    if isinstance(model, (str, Path)):
        return hashlib.sha256(Path(model).read_bytes()).hexdigest()
    return hashlib.sha256(model.to_json().encode()).hexdigest()


def _lacks_jax() -> str | None:
    """What is missing to run JAX on an attached GPU, or to compile for one that is not there."""
    if importlib.util.find_spec("jax") is None or not _plugin():
        return "JAX for CUDA is missing: pip install 'nas[gpu]'"
    return None


@functools.cache
def _reach() -> None:
    """Raises `TargetUnavailable` unless JAX reaches a GPU: before a model can be blamed for it."""
    request = {"operation": "devices", "platform": "cuda"}
    try:
        process.ask(request, environment=_CUDA, limit_s=120)
    except TargetUnavailable as error:
        raise TargetUnavailable(
            f"{error}; {_lacks_jax() or 'does `nvidia-smi` show a driver for ' + _runtime() + '?'}"
        ) from error


def _plugin() -> str | None:
    """JAX's CUDA plugin with its version, if one is installed."""
    for name in _PLUGINS:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def _compilable(chip: gpu_chips.Chip) -> bool:
    """Whether the installed plugin makes code for the chip: CUDA 13 has none before Turing."""
    from latency.nvidia.compile import COMPILED_FOR

    before_turing = (_plugin() or "").startswith("jax-cuda13") and chip.capability < (7, 5)
    return chip.capability in COMPILED_FOR and not before_turing


def _runtime() -> str:
    """JAX and its CUDA plugin, without importing them."""
    try:
        return f"JAX {metadata.version('jax')}, {_plugin() or 'no CUDA plugin'}"
    except metadata.PackageNotFoundError:
        return "no JAX"


def _calibrations(chip: str) -> Path:
    return cache_directory() / "gpu" / f"{chip}.json"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
