"""How the reports write numbers: figures, shares, counts, sizes and times, in one place."""

from collections.abc import Mapping
from typing import Any

MISSING = "-"


def figure(
    value: float | None, digits: int = 3, *, zeros: bool = True, missing: str = MISSING
) -> str:
    """A number with `digits` significant digits and no exponent.

    Args:
        value: The number; None where there is none.
        digits: How many significant digits; those before the decimal point are always written.
        zeros: Whether zeros at the end are kept, so that columns align.
        missing: What stands where there is no number.

    >>> figure(0.04567), figure(12345.6), figure(1.5), figure(1.5, zeros=False), figure(None)
    ('0.0457', '12,346', '1.50', '1.5', '-')
    """
    if value is None:
        return missing
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2]) if value else digits
    text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return text if zeros or "." not in text else text.rstrip("0").rstrip(".")


def percent(part: float | None, digits: int = 2) -> str:
    """A quality of 0..1 in percent, without the sign; '-' where there is none.

    >>> percent(0.98765)
    '98.77'
    """
    return MISSING if part is None else f"{100 * part:.{digits}f}"


def share(part: float | None) -> str:
    """A part of a whole, 0..1, in percent: one decimal below ten; nothing where there is none.

    >>> share(0.1234), share(0.0432), share(None)
    ('12%', '4.3%', '')
    """
    return "" if part is None else f"{part:.0%}" if part >= 0.1 else f"{part:.1%}"


def ratio(part: float, whole: float, digits: int = 2) -> str:
    """How many times `whole` goes into `part`; nothing where either is 0.

    >>> ratio(3, 2), ratio(3, 0)
    ('x1.50', '')
    """
    return f"x{part / whole:.{digits}f}" if part and whole else ""


def count(
    value: float | None, digits: int = 3, *, unit: str = "", space: str = "", zeros: bool = True
) -> str:
    """A count with a prefix for powers of 1000; '-' where there is none.

    >>> count(950), count(12_345), count(4_560_000)
    ('950', '12.3k', '4.56M')
    >>> count(12_879_925_248, 4, unit="B", space=" ", zeros=False)
    '12.88 GB'
    """
    if value is None:
        return MISSING
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 1000 - 0.5 * 10.0 ** (3 - digits) and prefix != "T":
        value, prefix = value / 1000, next(prefixes)
    written = figure(value, digits, zeros=zeros and bool(prefix))
    return written + space + prefix + unit


def size(length: float) -> str:
    """The bytes of a file: kB without a decimal, MB with two.

    >>> size(123_456), size(25_165_824)
    ('123 kB', '25.17 MB')
    """
    return f"{length / 1e3:,.0f} kB" if length < 1e6 else f"{length / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(8.23), duration(252), duration(11_100)
    ('8.2 s', '4 min 12 s', '3 h 05 min')
    """
    if seconds < 60:
        return f"{figure(seconds, 2)} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def tick(value: float) -> str:
    """The label of a tick, without needless zeros.

    >>> tick(2.50), tick(1000.0)
    ('2.5', '1,000')
    """
    return f"{value:,.10g}" if abs(value) < 1e9 else f"{value:.3g}"


def quality(value: float | None, record: Mapping[str, Any]) -> str:
    """A quality in its own unit: in % unless `record["percent"]` says that it is no share.

    >>> quality(0.5, {}), quality(0.5, {"percent": False})
    ('50.00 %', '0.5000')
    """
    if value is None:
        return MISSING
    return f"{percent(value)} %" if record.get("percent", True) else figure(value, 4)


def gain(before: float, after: float, record: Mapping[str, Any]) -> str:
    """What a quality gained: in points of %, or else in how much it is of what it was.

    >>> gain(0.5, 0.51, {}), gain(2.0, 2.5, {"percent": False, "higher_is_better": False})
    ('+1.00 points', 'x1.250, lower is better')
    """
    if record.get("percent", True):
        return f"{100 * (after - before):+.2f} points"
    better = "higher" if record.get("higher_is_better", True) else "lower"
    change = f"x{after / before:.3f}" if before > 0 else f"{after - before:+.4g}"
    return f"{change}, {better} is better"
