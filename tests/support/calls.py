"""How much a piece of work does, counted where a clock would tell how busy the machine is."""

import contextlib
import sys


@contextlib.contextmanager
def counted():
    """A list that holds, after the block, the number of functions that were called inside it."""
    calls, count = [], 0

    def count_one(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_one)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        calls.append(count)
