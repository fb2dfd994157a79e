"""A tabular benchmark: quality and costs looked up, so that controllers are compared in seconds.

Read from .npz: NAS-Bench-Macro (Su et al. 2021), NAS-Bench-201 with device latencies (Dong and Yang
2020; Li et al. 2021), Accel-NASBench (Ahmad et al. 2024); or any .npz or .csv of named columns, one
row a network: choices, a quality column, cost columns.
"""

import csv
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PERCENT_ABOVE = 1.5  # no share is above 1: such qualities are percentages
EDGES = ("0_1", "0_2", "1_2", "0_3", "1_3", "2_3")  # NAS-Bench-201's cell, as its strings list them
COST_MARKS = ("cost", "_ms")


@dataclasses.dataclass(frozen=True)
class Config:
    """One network of a table: its row, and what was chosen for each decision."""

    row: int
    choices: tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Networks whose quality and costs are known; its own search space and device.

    codes: (n, d) place of each decision's choice in `choices[name]`.
    observed: (n, seeds) quality in 0..1, one column a training run.
    known_costs: (n, m) in the units of `cost_names`, milliseconds for latencies.
    """

    name: str
    choices: Mapping[str, tuple]
    codes: np.ndarray
    observed: np.ndarray
    known_costs: np.ndarray
    cost_names: tuple[str, ...]
    seed: int = 0
    _rows: dict[bytes, int] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = {codes.tobytes(): row for row, codes in reversed(list(enumerate(self.codes)))}
        object.__setattr__(self, "_rows", rows)

    # --- A search space -------------------------------------------------------------------------

    def sample(self, trial: Any) -> Config:
        """The network a trial describes; where the table lacks it, the nearest one it has.

        Nearest: fewest decisions differ; of equally near ones the first row.
        """
        chosen = [
            places.index(trial.suggest_categorical(name, places))
            for name, places in self.choices.items()
        ]
        codes = np.array(chosen, dtype=self.codes.dtype)
        row = self._rows.get(codes.tobytes())
        if row is None:
            row = int(np.argmin((self.codes != codes).sum(axis=1)))
        return self.config_of(row)

    def config_of(self, row: int) -> Config:
        """The network of a row."""
        pairs = zip(self.choices.items(), self.codes[row], strict=True)
        return Config(int(row), tuple((name, places[code]) for (name, places), code in pairs))

    @property
    def complete(self) -> bool:
        """Whether the table holds every combination of choices."""
        return len(self._rows) == np.prod([float(len(places)) for places in self.choices.values()])

    @property
    def candidates(self) -> list[dict[str, Any]] | None:
        """The parameter sets that the table holds, or None where it holds all."""
        if self.complete:
            return None
        return [dict(self.config_of(row).choices) for row in range(len(self.codes))]

    # --- Figures --------------------------------------------------------------------------------

    def quality(self, config: Config, seed: int | None = None) -> float:
        """Quality 0..1 of one training run, or their mean where no seed is given."""
        runs = self.observed[config.row]
        return float(runs.mean() if seed is None else runs[seed % len(runs)])

    def costs(self, config: Config) -> tuple[float, ...]:
        """Costs in the units of `cost_names`."""
        return tuple(float(cost) for cost in self.known_costs[config.row])

    def observed_quality(self, config: Config) -> float:
        """Quality 0..1 of one training run, the same one at every call; `seed` picks it."""
        digest = hashlib.sha256(f"{self.seed} {config.row}".encode()).digest()
        return self.quality(config, int.from_bytes(digest[:4], "little"))


def load(
    path: str | pathlib.Path,
    quality: str | None = None,
    cost: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Table:
    """Read a table; `quality` and `cost` name its columns, several costs joined with `+`.

    Defaults: the benchmark's test accuracy and its first device; in any other file the column
    `quality` and every column whose name starts with `cost` or ends in `_ms`. All columns that are
    neither are choices. Throughputs become milliseconds an image. Rows without the quality or one
    of the costs are left out. `seed` picks the training run that is observed of each network,
    where there are several.

    >>> load("nasbench201_cifar100.npz", cost="raspi4+1080ti_1")  # doctest: +SKIP
    """
    path = pathlib.Path(path).expanduser()
    try:
        read = _read_csv if path.suffix == ".csv" else _read_npz
        columns = read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the table {path}: {error}") from error
    choices, qualities, costs = _understand(columns, quality, path)
    names = tuple(cost.split("+") if isinstance(cost, str) else cost or list(costs)[:1])
    if cost is None and "arch" not in columns and "ops" not in columns:
        names = tuple(costs)
    for name in names:
        if name not in costs:
            raise ValueError(f"{path} has no cost {name!r} (it has: {', '.join(costs)})")
    if not names:
        raise ValueError(f"{path} has no cost column; name one: cost=COLUMN")
    known = np.stack([costs[name] for name in names], axis=1)
    usable = np.isfinite(known).all(axis=1) & np.isfinite(qualities).all(axis=1)
    if not usable.any():
        raise ValueError(f"{path} has no row with both a quality and {' and '.join(names)}")
    if np.nanmax(qualities) > PERCENT_ABOVE:
        qualities = qualities / 100
    places, codes = {}, []
    for name, column in choices.items():
        values, code = np.unique(column[usable], return_inverse=True)
        places[name] = tuple(value.item() for value in values)
        codes.append(code.ravel())
    return Table(
        name=path.stem,
        choices=places,
        codes=np.stack(codes, axis=1).astype(np.int64),
        observed=qualities[usable],
        known_costs=known[usable],
        cost_names=names,
        seed=seed,
    )


def _understand(columns: Any, quality: Any, path: Any) -> Any:
    """Choices {name: (n,)}, qualities (n, seeds) and costs {name: (n,)} of what a file holds."""
    costs: dict[str, Any] = {}
    others: tuple[str, ...] = ()
    if "ops" in columns and "op_names" in columns:
        operations = columns["op_names"][columns["ops"]]
        choices = {f"edge_{edge}": operations[:, i] for i, edge in enumerate(EDGES)}
        quality = quality or "acc200_test_cifar100"
        costs = {name[4:]: columns[name] for name in columns if name.startswith("lat_")}
        others = ("mflops_cifar100", "mparams_cifar100")
    elif "arch" in columns and "test_acc" in columns:
        choices = {f"block{i}": column for i, column in enumerate(columns["arch"].T)}
        quality, others = quality or "test_acc", ("flops", "params")
    elif "arch" in columns and "arch_names" in columns:
        choices = dict(zip(columns["arch_names"].tolist(), columns["arch"].T, strict=True))
        quality, others = quality or "val_top1", ("mmacs", "mparams")
        costs = {
            name[len("throughput_") :]: 1000 / columns[name].astype(float)
            for name in columns
            if name.startswith("throughput_")
        }
    else:
        quality = quality or "quality"
        for name, column in columns.items():
            if name.startswith(COST_MARKS[0]) or name.endswith(COST_MARKS[1]):
                costs[name] = column
        choices = {n: c for n, c in columns.items() if n != quality and n not in costs}
        if any(column.ndim != 1 for column in [*choices.values(), *costs.values()]):
            raise ValueError(f"{path}: choices and costs must be one value a row")
    costs = {**costs, **{name: columns[name] for name in others}}
    if quality not in columns:
        raise ValueError(f"{path} has no quality {quality!r} (it has: {', '.join(columns)})")
    qualities = np.asarray(columns[quality], float)
    costs = {name: np.asarray(column, float) for name, column in costs.items()}
    return choices, qualities.reshape(len(qualities), -1), costs


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_csv(path: pathlib.Path) -> dict[str, np.ndarray]:
    with open(path, newline="") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise ValueError("no rows below the header")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} values, the header {len(header)}")
    return {
        name: _typed(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)
    }


def _typed(column: Sequence[str]) -> np.ndarray:
    for kind in (int, float):
        try:
            return np.array([kind(value) for value in column])
        except ValueError:
            continue
    return np.array(column)
