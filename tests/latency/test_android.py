"""The journey to a phone: the real adb client against an adbd of the tests on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from adbd import TOOL, Adbd, install_tool

from latency.android import Android
from latency.benchmark_tool import invocations
from latency.measuring import reference_networks
from latency.phones import adb, phone_state
from latency.target import TargetUnavailable
from nas import registry
from nas.cli import command_line
from nas.testing import check_target

ADB = shutil.which("adb")
pytestmark = pytest.mark.skipif(not ADB, reason="no adb: apt-get install adb")
# A tool that never ends; as a script its command line names its folder on the device.
HUNG = (
    f"#!{sys.executable}\nimport sys, time\nopen(sys.path[0] + '/started', 'w')\ntime.sleep(60)\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An adb server of our own: no other is touched, nor the user's keys."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "ANDROID_ADB_SERVER_PORT": str(port),
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",  # looks for no emulators
    }
    yield settings
    subprocess.run([ADB, "kill-server"], env=os.environ | settings, timeout=20, check=False)


@pytest.fixture
def settings(server, monkeypatch):
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    yield server
    subprocess.run([ADB, "disconnect"], timeout=20, check=False, capture_output=True)


@pytest.fixture
def device(settings, tmp_path):
    adbd = Adbd(tmp_path / "device")
    yield adbd
    adbd.stop()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(reference_networks.network("small"))
    return path


@pytest.fixture
def tool(tmp_path):
    """In the user's cache, where it is looked for."""
    return install_tool(tmp_path / "cache/benchmark_model/arm64-v8a")


def target(device, **options):
    return Android(device.serial, **{"cool_down_s": 0.0, "limit_s": 60.0} | options)


def test_the_contract(device, model, tool):
    check_target(target(device), model)


def test_the_whole_journey(device, model, tool):
    """Measured by the tool on pinned cores, with the conditions, and nothing left behind."""
    phone = target(device)
    latency = phone.profile(model, warmup=1, runs=4, details=True)
    assert latency.measured and latency.device == "Test adbd sandbox, loopback, Android 14"
    assert len(latency.samples_ms) == 4 and 0 < latency.median_ms < 1000
    assert latency.memory_mb == 2.5
    assert {"CONV_2D", "DEPTHWISE_CONV_2D"} <= {row["type"] for row in latency.per_op}
    conditions = latency.conditions
    assert conditions["battery_c"] == 29.5 and conditions["skin_c"] == 31.5
    assert conditions["throttling"] == 0 and conditions["governor"] == "schedutil"
    assert conditions["after"]["battery_percent"] == 81 and conditions["charging"] is True
    assert conditions["one_invocation"]["runs"] == 4
    big = max(os.sched_getaffinity(0))
    assert conditions["pinned_cores"] == [big]
    runs = [command for command in device.commands if "--graph=" in command]
    assert len(runs) == 4 and all(f"taskset {1 << big:x} /data" in command for command in runs)
    assert list(device.tmp.iterdir()) == []
    json.dumps(latency.to_json())
    known = phone.identity()
    assert known == target(device).identity() and known["serial"] == device.serial
    assert known.items() <= conditions.items()


def test_running_without_pause(device, model, tool, monkeypatch):
    """The heat is read between spells, nobody waits for the phone to cool, nothing is left."""
    monkeypatch.setattr(invocations, "_SPELL_S", 0.05)
    spells = list(target(device).sustain(model, seconds=4.0))
    assert len(spells) >= 2 and all(one.measured and one.median_ms > 0 for one in spells)
    first, second = spells[0].conditions, spells[1].conditions
    assert first["runs"] == 3 and second["runs"] > 3 and second["at_s"] > first["at_s"]
    assert second["battery_c"] == 29.5 and first["pinned_cores"]
    assert list(device.tmp.iterdir()) == []
    broken = target(device).sustain(model, seconds=60.0)
    next(broken)
    broken.close()  # as Ctrl-C does
    assert list(device.tmp.iterdir()) == []


def test_the_command_line(device, model, tool, capsys):
    options = f"android:{device.serial},cool_down_s=0,cores=all"
    assert (
        command_line.main(["profile", str(model), "--target", options, "--runs", "2", "--json"])
        == 0
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert row["measured"] and len(row["samples_ms"]) == 2
    assert row["conditions"]["pinned_cores"] is None
    assert not any("taskset" in command for command in device.commands)


def test_a_phone_of_before_android_7(device, model, tool):
    """No exit status, no separate stderr: an error is told nevertheless."""
    device.features = b""
    assert target(device).profile(model, warmup=0, runs=1).measured
    broken = install_tool(tool, "#!/bin/sh\necho ERROR: no such op\nexit 3\n")
    with pytest.raises(ValueError, match="ended with status 3 on phone .*: ERROR: no such op"):
        target(device, benchmark=str(broken)).profile(model)
    assert list(device.tmp.iterdir()) == []


def test_one_measurement_at_a_time(device, model, tool):
    done = []
    other = threading.Thread(
        target=lambda: done.append(target(device).profile(model, warmup=0, runs=1))
    )
    with invocations.alone("android", device.serial, "the phone"):
        other.start()
        time.sleep(0.8)
        assert not any("mkdir" in command for command in device.commands)
    other.join()
    assert len(done) == 1


def test_pulling_the_cable_in_mid_run(device, model, tmp_path):
    """Unavailable within seconds, not hung; plugged in again, what was left is removed."""
    slow = install_tool(tmp_path / "slow", HUNG)

    def pull():
        while not list(device.tmp.glob("*/started")):
            time.sleep(0.02)
        device.unplug()

    threading.Thread(target=pull, daemon=True).start()
    begin = time.monotonic()
    with pytest.raises(TargetUnavailable, match=f"lost phone {device.serial}"):
        target(device, benchmark=str(slow)).profile(model, warmup=0, runs=1)
    assert time.monotonic() - begin < 25
    (left,) = device.tmp.iterdir()
    running = int((left / "pid").read_text())
    device.plug()
    latency = _until(
        lambda: target(device, benchmark=str(install_tool(tmp_path / "tool"))).profile(
            model, warmup=0, runs=1
        )
    )
    assert latency.measured and list(device.tmp.iterdir()) == []
    assert _ended(running), "the tool of before went on running"


def test_a_tool_that_hangs(device, model, tmp_path):
    hung = install_tool(tmp_path / "hung", HUNG)
    seen = []

    def watch():
        while not list(device.tmp.glob("*/started")):
            time.sleep(0.02)
        seen.extend(int(pid.read_text()) for pid in device.tmp.glob("*/pid"))

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises(TargetUnavailable, match="hangs on phone .*: ended after 3 s"):
        target(device, benchmark=str(hung), limit_s=3).profile(model, runs=1)
    assert list(device.tmp.iterdir()) == []
    assert len(seen) == 1 and _ended(seen[0]), "the tool goes on running"


def test_full_disk(device, model, tool, capsys):
    device.room = 5000
    assert _profile(device, model) == 2
    assert "has no room for" in capsys.readouterr().err
    assert list(device.tmp.iterdir()) == []


def test_hot_battery(device, model, tool, capsys):
    device.heat(47.3)
    assert _profile(device, model) == 2
    told = capsys.readouterr().err
    assert "too hot to measure: its battery has 47.3 C, the limit is 40 C" in told
    device.heat(30, status=2)
    with pytest.raises(TargetUnavailable, match="throttles"):
        target(device).profile(model, runs=1)
    assert not any("--graph=" in command for command in device.commands), "it ran nevertheless"


def test_it_waits_for_a_phone_to_cool(device, model, tool):
    device.heat(47.3)

    def cool():
        while sum("nas-thermal" in command for command in list(device.commands)) < 2:
            time.sleep(0.02)
        device.heat(35.0)

    threading.Thread(target=cool, daemon=True).start()
    latency = target(device, cool_down_s=20.0).profile(model, warmup=0, runs=1)
    assert latency.conditions["battery_c"] == 35 and latency.conditions["waited_s"] > 1


def test_unauthorized(settings, tmp_path, model, tool, capsys):
    adbd = Adbd(tmp_path / "device", mode="unauthorized")
    try:
        assert _profile(adbd, model) == 2
        assert "has not authorized this computer: unlock it" in capsys.readouterr().err
    finally:
        adbd.stop()


def test_offline(settings, tmp_path, model, tool, capsys):
    adbd = Adbd(tmp_path / "device", mode="silent")
    try:
        begin = time.monotonic()
        assert _profile(adbd, model) == 2
        assert "offline: unplug and plug it again" in capsys.readouterr().err
        assert time.monotonic() - begin < 30
    finally:
        adbd.stop()


def test_no_phone_and_several(settings, device, tmp_path):
    with pytest.raises(TargetUnavailable, match="no phone is attached: plug one in"):
        _ = Android().device
    with pytest.raises(TargetUnavailable, match="phone ABC is not attached"):
        _ = Android("ABC").device
    assert adb.ready(device.serial).serial == device.serial
    assert Android().device == target(device).device, "the only one needs no name"
    other = Adbd(tmp_path / "other")
    try:
        adb.ready(other.serial)
        with pytest.raises(TargetUnavailable, match="several phones are attached.*name one"):
            _ = Android().device
    finally:
        other.stop()


def test_without_adb(settings, model, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TargetUnavailable, match="adb is not installed: `apt-get install adb`"):
        Android("ABC").profile(model)


def test_without_the_tool(device, model):
    with pytest.raises(TargetUnavailable, match="benchmark_model for arm64-v8a is missing: downl"):
        target(device).profile(model)


def test_a_tool_that_fails_and_a_delegate_that_does_nothing(device, model, tool, tmp_path):
    broken = install_tool(tmp_path / "broken", "#!/bin/sh\necho ERROR: no such op\nexit 1\n")
    with pytest.raises(ValueError, match="ended with status 1 on phone .*: ERROR: no such op"):
        target(device, benchmark=str(broken)).profile(model)
    with pytest.raises(ValueError, match="all would run on the CPU"):
        target(device, delegate="gpu").profile(model, warmup=0, runs=1)
    assert list(device.tmp.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"TFL3", b"x" * 100, b"\x1c\0\0\0TFL3" + 50 * b"\xff"])
def test_hostile_files_do_not_reach_the_phone(device, tool, tmp_path, capsys, content):
    file = tmp_path / "a $(touch owned) `b`;.tflite"
    file.write_bytes(content)
    assert _profile(device, file) == 2
    told = capsys.readouterr().err
    assert [line.startswith("nas: ") for line in told.splitlines()].count(True) == 1
    assert told.splitlines()[-1].startswith("nas: ") and "Traceback" not in told
    assert not device.commands or not any("mkdir" in command for command in device.commands)


def test_names_are_never_read_by_a_shell(device, model, tmp_path):
    """A file may have any name: it reaches adb as one argument and the phone not at all."""
    odd = tmp_path / "-x $(touch owned) `touch owned`; 'q\".tflite"
    shutil.copy(model, odd)
    tool = install_tool(tmp_path / "$(touch owned) tool; ")
    target(device, benchmark=str(tool)).profile(odd, warmup=0, runs=1)
    assert not any("owned" in command for command in device.commands)
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize(
    "text",
    ["android:-s", "android:a b", "android:$(x)", "android:A;ls", "android:A,cores=4;ls"]
    + ["android:A,cores=9-4", "android:A,cores=99", "android:A,threads=0", "android:A,limit_s=0"]
    + ["android:A,delegate=tpu", "android:1e5", "android:A,cool_down_s=nan"],
)
def test_options_are_checked_where_they_come_in(text):
    with pytest.raises(ValueError, match="expected|quote it"):
        registry.target(text)


def test_options():
    assert registry.target("android:12345,threads=4") == Android("12345", threads=4)
    assert registry.target("android:10.0.0.2:5555,cores=4+6-7").serial == "10.0.0.2:5555"
    assert registry.target("android:A,cores=7").cores == "7"


def test_the_biggest_cores_as_threads_need_them():
    listed = [(n, 1_803_000) for n in range(4)] + [(n, 2_348_000) for n in (4, 5, 6)]
    lines = [f"{n} {khz} {khz} walt" for n, khz in [*listed, (7, 2_850_000)]]
    parts = {"battery": "", "thermal": "", "saver": "null", "cores": "\n".join(lines) + "\n8"}
    state = phone_state.parse(parts)
    assert state.biggest(1) == [7] and state.biggest(2) == [4, 5, 6, 7]
    assert state.biggest(8) == list(range(8))
    assert state.too_hot(10) is None and state.battery_saver is None
    parts["cores"] = parts["cores"].replace("7 2850000 2850000", "7 2850000 1500000")
    assert phone_state.instabilities(state, phone_state.parse(parts)) == [
        "the clock of cores [7] was lowered meanwhile"
    ]


def test_importing_the_target_starts_nothing_and_needs_little():
    code = "import sys, latency.android; print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]


def test_the_stand_in_prints_what_the_tool_prints(model, tmp_path):
    """The tests' own tool runs the network for real: its time grows with the network."""
    large = tmp_path / "large.tflite"
    large.write_bytes(reference_networks.network("large"))
    script = install_tool(tmp_path / "tool", TOOL)
    from latency.benchmark_tool import benchmark_model

    def fastest(file):
        words = benchmark_model.arguments(str(file), threads=1, warmup=3, runs=30)
        told = subprocess.run(
            [sys.executable, script, *words], capture_output=True, text=True, check=True
        )
        return benchmark_model.parse(told.stdout).fastest_ms

    assert fastest(large) > 2 * fastest(model)


def test_more_threads_than_cores(device, tool):
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match=f"threads=64: there are {cores} cores for them"):
        target(device, threads=64).identity()
    with pytest.raises(ValueError, match="the phone has no core 63"):
        target(device, cores="63").identity()


def _profile(device, file) -> int:
    options = f"android:{device.serial},cool_down_s=0"
    return command_line.main(["profile", str(file), "--target", options, "--runs", "1"])


def _until(work, limit_s: float = 30):
    """What `work` returns once the phone is back."""
    end = time.monotonic() + limit_s
    while True:
        try:
            return work()
        except TargetUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def _ended(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
