"""`nas show --follow`: the table of a study that is being searched, again when it has changed."""

import datetime
import pathlib
import sys
import time
from collections.abc import Iterator

_EACH_S = 2.0
_SHARE = 0.1  # of the time is spent on looking, where a study is so long that it takes a while
_CLEAR = "\x1b[H\x1b[J"


def follow(folder: pathlib.Path) -> None:
    """Print the table until the search has written its result, or Ctrl-C."""
    try:
        for text in tables(folder):
            print(f"{_CLEAR}{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)
    except KeyboardInterrupt:
        return


def tables(folder: pathlib.Path) -> Iterator[str]:
    """The table as it is now, and anew after each change, until the search is at its end."""
    from nas import interruption
    from nas.searching import study as studies
    from nas.searching.result import Study

    settings, kept = studies.load(folder)
    before = ""
    while True:
        started = time.monotonic()
        ended = _ended(folder, kept.get_trials(deepcopy=False))
        text = repr(Study(folder, settings, kept))
        if text != before:
            yield text
        if ended:
            return
        before = text
        interruption.sleep(max(_EACH_S, (time.monotonic() - started) / _SHARE))


def _ended(folder: pathlib.Path, trials: list) -> bool:
    """Whether the result was written after the last trial, and none is being worked on."""
    result = folder / "result.json"
    if not result.exists() or not all(trial.state.is_finished() for trial in trials):
        return False
    written = datetime.datetime.fromtimestamp(result.stat().st_mtime)
    return all(trial.datetime_complete <= written for trial in trials if trial.datetime_complete)
