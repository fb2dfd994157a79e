"""Every figure that a target gave, in one SQLite file (or the database that NAS_PROFILES names).

What is read back keeps its kind: a row is written from a `Latency` and never changed.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from latency.system import spared
from latency.system.json_records import utc_now
from latency.target import Latency, Target, cache_directory
from nas import interruption

_PROFILES = sa.Table(
    "profiles",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("date", sa.String(32), nullable=False, index=True),
    sa.Column("network", sa.String(64), nullable=False),  # a digest that identifies it
    sa.Column("name", sa.String(512), nullable=False),  # what the user calls it
    sa.Column("target", sa.String(512), nullable=False),
    sa.Column("device", sa.String(512), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("batch_size", sa.Integer, nullable=False),
    sa.Column("median_ms", sa.Float, nullable=False),
    sa.Column("runtime", sa.String(256)),
    sa.Column("record", sa.Text, nullable=False),  # `Latency.to_json`
)


def location() -> str:
    """The database as an SQLAlchemy URL: NAS_PROFILES, else profiles.sqlite in the user's cache."""
    named = os.environ.get("NAS_PROFILES")
    return named or f"sqlite:///{cache_directory() / 'profiles.sqlite'}"


def profile(
    target: Target,
    models: dict[str, Any],
    *,
    networks: Sequence[str] | None = None,
    **options: Any,
) -> list[Latency]:
    """`Target.compare` on models by name, and every figure recorded; `options` are its own.

    `networks` are digests that identify the networks, where the caller knows them.
    """
    interruption.check()
    latencies = target.compare(list(models.values()), **options)
    for index, (name, latency) in enumerate(zip(models, latencies, strict=True)):
        add(latency, name, networks[index] if networks else digest(models[name]))
    return latencies


def add(latency: Latency, name: str, network: str) -> None:
    """Keep one figure; where that fails, say so, for the figure itself is not to be lost."""
    row = {
        "date": latency.conditions.get("date") or utc_now(),
        "network": network,
        "name": name[:512],
        "target": latency.target[:512],
        "device": latency.device[:512],
        "kind": str(latency.kind),
        "batch_size": latency.batch_size,
        "median_ms": latency.median_ms,
        "runtime": str(latency.conditions.get("runtime", ""))[:256],
        "record": json.dumps(latency.to_json(), default=repr),
    }
    try:
        with _database(location()).begin() as connection:
            connection.execute(_PROFILES.insert(), row)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        named = "NAS_PROFILES" in os.environ
        spared.say(reason, f"figures are not recorded in {location()}" if named else None)


def digest(model: Any) -> str:
    """A name for a network: of a file its content, of a model its architecture (no weights)."""
    if isinstance(model, (str, Path)):
        with open(model, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return hashlib.sha256(model.to_json().encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Row:
    """One recorded figure."""

    date: str
    network: str
    name: str
    target: str
    device: str
    kind: str
    batch_size: int
    median_ms: float
    runtime: str
    latency: Latency


def rows(kind: str | None = None) -> list[Row]:
    """All that was recorded, oldest first; only one kind, if named."""
    query = sa.select(_PROFILES).order_by(_PROFILES.c.date, _PROFILES.c.id)
    if kind is not None:
        query = query.where(_PROFILES.c.kind == kind)
    try:
        with _database(location()).connect() as connection:
            found = connection.execute(query).mappings().all()
    except sa.exc.SQLAlchemyError as error:
        raise ValueError(f"cannot read {location()}: {str(error).splitlines()[0]}") from error
    names = [field.name for field in dataclasses.fields(Row)][:-1]
    return [
        Row(**{name: row[name] for name in names}, latency=_latency(row["record"])) for row in found
    ]


def _latency(text: str) -> Latency:
    return Latency.from_json(json.loads(text))


@functools.cache
def _database(url: str) -> sa.Engine:
    """The database, its table made when it is new."""
    try:
        address = sa.make_url(url)
        options: dict[str, Any] = {}
        if address.get_backend_name() == "sqlite":
            if address.database:
                Path(address.database).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": 60}  # seconds; several workers write
            options["poolclass"] = sa.pool.NullPool  # nothing open across a fork
        engine = sa.create_engine(address, **options)
        try:
            _PROFILES.metadata.create_all(engine)
        except sa.exc.OperationalError:  # another process made the table in this moment
            _PROFILES.metadata.create_all(engine)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise ValueError(f"NAS_PROFILES={url}: expected an SQLAlchemy URL: {error}") from error
    return engine
