"""A cache on a disk that is really full, or read-only: one warning, and every result."""

import json
import os
import shutil
import subprocess
import sys

import pytest

# In a mount namespace of its own, which needs no rights where the kernel allows users to have one.
MOUNT = """
mount -t tmpfs -o size=64k tmpfs "$NAS_CACHE" || exit 77
head -c 1M /dev/zero > "$NAS_CACHE/filler" 2> /dev/null
[ "$1" = full ] || mount -o remount,ro "$NAS_CACHE" || exit 77
shift
exec "$@"
"""
PROGRAM = """
import json, pathlib, sys
from latency.cpu import CPU
from latency.measuring import reference_networks
from nas import cache
from nas.profiling import journey

file = pathlib.Path(sys.argv[1], "net.tflite")
file.write_bytes(reference_networks.network("small"))
found = [journey.profile(file, CPU(threads=1), runs=2, warmup=1)[0].measured for _ in range(2)]
records = [cache.remember("quality", {"n": 1}, lambda: {"quality": 0.5}) for _ in range(2)]
print(json.dumps([found, records]))
"""


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_no_result_is_lost(disk, tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, so no disk of its own")
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "NAS_PROFILES"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT, "sh", disk, sys.executable, "-c", PROGRAM, tmp_path],
        env=environment | {"NAS_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found, records = json.loads(done.stdout)
    assert found == [True, True]
    assert records == [[{"quality": 0.5}, False]] * 2  # not known, so computed again
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    reason = "No space left on device" if disk == "full" else "Read-only file system"
    assert len(warnings) == 1 and f"nothing is kept in {cache}: {reason}" in warnings[0]
    assert not list(cache.iterdir())  # the disk was its own
