"""Work on a device that may be away for a while."""

from collections.abc import Callable
from typing import Any

from latency.target import TargetUnavailable
from nas import interruption

WAIT_FOR_DEVICE_S = 10.0


def wait_for_device(work: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """Do the work; while the device is away, say why and try again."""
    said = None
    while True:
        try:
            return work()
        except TargetUnavailable as error:
            if str(error) != said:
                said = str(error)
                say(said)
            interruption.sleep(WAIT_FOR_DEVICE_S)
