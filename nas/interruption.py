"""Ctrl-C and SIGTERM: a journey ends between two steps, and hands over what it has.

The signal sets a flag, which whatever turns asks for (`check`). An exception out of the signal's
handler could vanish: Python prints it and goes on where it is raised within a callback, such as
that of JAX at garbage collection. Where nothing asks for two seconds (a device is waited for, a
network is compiled) KeyboardInterrupt is raised there, and once more where that vanished. A second
Ctrl-C is raised at once.

In a program of the user's, signals are listened to while a journey runs, in the main thread (others
never see them), and only where Python itself does all there is: a handler of the program's own, and
a signal that it ignores, stay.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# What Python does by itself.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_TICK_S = 0.5
# Ticks without a `check` until KeyboardInterrupt is raised, and twice as many until it is again.
# Those within one call of compiled code count as one: the `check` after a long step comes first.
_PATIENCE = 4


class Interrupted(KeyboardInterrupt):
    """Raised by `check`, between two steps, so that what it ends can keep its state."""


@dataclasses.dataclass
class Request:
    """Whether the end was asked for, and how far it is."""

    signal: int | None = None  # that asked for it
    at_once: bool = False  # by a second Ctrl-C
    raised: bool = False
    ending: bool = False  # what was found is being handed over
    journeys: int = 0  # that run, one within another
    ticks: int = 0
    alarm: tuple[Any, tuple[float, float]] | None = None  # the program's, while ours ticks


_request: Request | None = None


def check() -> None:
    """Raise `Interrupted` if Ctrl-C or SIGTERM came; called where a loop turns."""
    request = _request
    if request is None or request.signal is None or request.ending or not _in_main_thread():
        return
    request.raised, request.ticks = True, -_PATIENCE
    raise Interrupted


def sleep(seconds: float) -> None:
    """`time.sleep` that ends with `Interrupted` soon after Ctrl-C or SIGTERM."""
    end = time.monotonic() + seconds
    check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
        check()


def hand_over() -> None:
    """From here on the journey only writes what it has: nothing but a second Ctrl-C ends it.

    Raises KeyboardInterrupt where there were two already.
    """
    if _request is None or not _in_main_thread():
        return
    if _request.at_once:
        raise KeyboardInterrupt
    _request.ending = True


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Around a journey, or its decorator: Ctrl-C and SIGTERM end it at the next `check`.

    In a program of the user's, SIGTERM then ends the program, as it would have; Ctrl-C that came
    too late to be raised before is raised at the end.
    """
    if not _in_main_thread():
        yield
        return
    outermost = _request is None
    with _listening() as request:
        request.journeys += 1
        try:
            yield
        finally:
            request.journeys -= 1
            if not request.journeys:
                request.ending = False
                _stop_ticking(request)
                if outermost and request.signal == signal.SIGTERM:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    os.kill(os.getpid(), signal.SIGTERM)
    if outermost and request.signal is not None and not request.raised:
        raise KeyboardInterrupt


@contextlib.contextmanager
def command() -> Iterator[Request]:
    """Around a command of the command line: outside of journeys, signals are raised at once.

    What it gives says afterwards which signal there was.
    """
    if not _in_main_thread():
        yield Request()
        return
    with _listening() as request:
        yield request


@contextlib.contextmanager
def _listening() -> Iterator[Request]:
    global _request
    if _request is not None:
        yield _request
        return
    _request = request = Request()
    unraisable = sys.unraisablehook

    def vanished(error: Any) -> None:
        if issubclass(error.exc_type, KeyboardInterrupt):
            request.ticks = _PATIENCE  # at the next tick again
        else:
            unraisable(error)

    sys.unraisablehook = vanished
    usual = {number: one for number, one in _USUAL.items() if signal.getsignal(number) == one}
    for number in usual:
        signal.signal(number, _asked)
    try:
        yield request
    finally:
        _stop_ticking(request)
        for number, one in usual.items():
            signal.signal(number, one)
        sys.unraisablehook = unraisable
        _request = None


def _asked(number: int, frame: Any) -> None:
    request = _request
    if request is None:  # it ends in this moment
        raise KeyboardInterrupt
    first = request.signal is None
    if first:
        request.signal = number
    elif number == signal.SIGINT:
        request.at_once, request.ending = True, False
    if request.ending:
        return
    if request.alarm is None:
        ours = signal.signal(signal.SIGALRM, _tick)
        request.alarm = (ours, signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S))
    if request.at_once or (first and not request.journeys):
        _raise(request)


def _tick(number: int, frame: Any) -> None:
    request = _request
    if request is None or request.ending or request.alarm is None:
        return
    request.ticks += 1
    if request.ticks >= _PATIENCE:
        _raise(request)


def _raise(request: Request) -> None:
    request.raised, request.ticks = True, -_PATIENCE
    raise KeyboardInterrupt


def _stop_ticking(request: Request) -> None:
    """The alarm is the program's again."""
    if request.alarm is not None:
        handler, timer = request.alarm
        request.alarm = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
