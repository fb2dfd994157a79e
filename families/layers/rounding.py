"""The rounding rule of the mobile networks."""


def round_filters(filters: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, not below 90 % of `filters` (released MobileNet code).

    >>> round_filters(0.75 * 24), round_filters(0.35 * 32)
    (24, 16)
    """
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * filters else rounded
