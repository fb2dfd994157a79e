"""What was computed once is never computed again: one JSON file a result, shared by all studies.

An entry is computed under a lock of its own, so of several workers that come to the same network at
once one works and the others wait for its result. Where the cache is full or read-only, each works.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

from latency.system.spared import keep_json, spared
from latency.target import cache_directory
from nas.locks import locked


def remember(
    kind: str, identity: Any, compute: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """The record of `identity` (anything JSON can tell apart), and whether it was known already.

    `compute` is called when it is not; a record with a true "transient" entry is not kept.
    """
    text = json.dumps(identity, sort_keys=True, default=repr)
    path = cache_directory() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.ExitStack() as stack:
        with spared():
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path.with_suffix(".lock")))
        with contextlib.suppress(OSError, ValueError, LookupError):
            entry = json.loads(path.read_text())
            if entry["identity"] == json.loads(text):
                return entry["record"], True
        record = compute()
        if not record.get("transient"):
            keep_json(path, {"identity": identity, "record": record})
        return record, False
