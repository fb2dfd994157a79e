"""One BLAS thread for the small matrices of controllers: more of them only wait for each other."""

import contextlib
import functools
from collections.abc import Iterator

import scipy.linalg  # noqa: F401 (so that its BLAS is among those that are limited)
import threadpoolctl


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()  # takes milliseconds: once a process


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits BLAS to one thread, also as a decorator; restored afterwards.

    >>> with one_blas_thread():
    ...     pass
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield
