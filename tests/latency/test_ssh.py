"""The journey to a board: the real OpenSSH client against a real sshd of the tests on loopback."""

import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import sshd as server
from adbd import install_tool

from latency.benchmark_tool import benchmark_model, invocations
from latency.boards import board_state, openssh, python_script
from latency.measuring import reference_networks
from latency.ssh import SSH
from latency.target import FoundDevice, Kind, TargetUnavailable
from nas import registry
from nas.cli import command_line
from nas.testing import check_target

pytestmark = [
    pytest.mark.skipif(not server.SSHD, reason="no sshd: apt-get install openssh-server"),
    pytest.mark.skipif(not shutil.which("ssh"), reason="no ssh: apt-get install openssh-client"),
    pytest.mark.skipif(
        sys.platform != "linux", reason="the test's board is this machine: no Linux"
    ),
]
ARCH = f"linux-{platform.machine()}"
HUNG = f"#!{sys.executable}\nimport time\nopen('started', 'w')\ntime.sleep(60)\n"
# A LiteRT whose networks never end, as a module beside the real one.
HUNG_LITERT = """
import time, os
class Interpreter:
    def __init__(self, **_): pass
    def allocate_tensors(self): pass
    def get_input_details(self): return []
    def invoke(self):
        open(os.environ["TMPDIR"] + "/started", "w").close()
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    try:
        board = server.Sshd(tmp_path_factory.mktemp("shared") / "board")
    except RuntimeError as error:
        pytest.skip(str(error))
    board.python()
    yield board
    openssh.disconnect()
    board.stop()


@pytest.fixture
def board(shared):
    """One server for most tests: as it was before each, and nothing left behind after it."""
    before = {path.name for path in (shared.folder / "bin").iterdir()}
    (shared.folder / "commands").unlink(missing_ok=True)
    shared.heat(45)
    shared.trust(shared.folder / "host.pub")
    yield shared
    openssh.disconnect()
    left, running = shared.left(), _until_none(shared.processes)
    for path in left:  # it is this test that fails, not the next
        shutil.rmtree(path, ignore_errors=True)
    assert left == [] and running == [], "something is left on the board"
    for path in (shared.folder / "bin").iterdir():
        if path.name not in before:
            path.unlink()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(reference_networks.network("small"))
    return path


@pytest.fixture
def tool(tmp_path):
    """In the user's cache, where it is looked for."""
    return install_tool(tmp_path / f"cache/benchmark_model/{ARCH}")


def target(board, **options):
    options = {"config": str(board.config), "cool_down_s": 0.0, "limit_s": 60.0} | options
    return SSH(board.host, **options)


def test_the_contract(board, model):
    check_target(target(board), model)


def test_the_whole_journey_with_python(board, model):
    """Every run is timed on the board's fastest core, with the conditions, and nothing is left."""
    pi = target(board)
    latency = pi.profile(model, warmup=2, runs=30)
    assert latency.measured and latency.device.startswith("Test Board Rev 1.0, ")
    assert len(latency.samples_ms) == 30 and 0 < latency.median_ms < 1000
    assert 0 < latency.memory_mb < 200 and latency.per_op is None
    conditions = latency.conditions
    assert conditions["runtime"].startswith("ai-edge-litert ")
    assert conditions["pinned_cores"] == [max(os.sched_getaffinity(0))]
    assert conditions["temperature_c"] == conditions["after"]["temperature_c"] == 45
    assert conditions["governor"] == "ondemand" and conditions["threads"] == 1
    assert 0 < conditions["contention"] <= 1.05 and conditions["warmup_runs"] > 2
    assert conditions["uptime_s"] > 0 and conditions["load_average"] >= 0
    assert platform.release() in conditions["system"]
    known = pi.identity()
    assert known == target(board).identity() and known.items() <= conditions.items()
    json.dumps(latency.to_json())
    assert not any("mkdir" in command for command in board.commands), "nothing is written there"


def test_the_whole_journey_with_the_tool(board, model, tool):
    latency = target(board, runtime="benchmark_model").profile(
        model, warmup=1, runs=4, details=True
    )
    assert latency.measured and len(latency.samples_ms) == 4 and 0 < latency.median_ms < 1000
    assert latency.memory_mb == 2.5 and latency.per_op_kind is Kind.MEASURED
    assert {"CONV_2D", "DEPTHWISE_CONV_2D"} <= {row["type"] for row in latency.per_op}
    assert latency.conditions["one_invocation"]["runs"] == 4
    core = max(os.sched_getaffinity(0))
    runs = [command for command in board.commands if "--graph=" in command]
    assert len(runs) == 4 and all(f"taskset {1 << core:x} ./benchmark" in run for run in runs)
    assert latency.conditions["runtime"].startswith("LiteRT benchmark_model ")


def test_running_without_pause(board, model, monkeypatch):
    monkeypatch.setattr(invocations, "_SPELL_S", 0.1)
    spells = list(target(board).sustain(model, seconds=3.0))
    assert len(spells) >= 2 and spells[0].conditions["temperature_c"] == 45
    assert [len(one.samples_ms) for one in spells[:1]] == [3] and len(spells[1].samples_ms) > 3
    assert spells[1].conditions["at_s"] > spells[0].conditions["at_s"]


@pytest.mark.slow
def test_the_tool_on_the_path_of_the_board_and_operations_beside_python(board, model, tmp_path):
    board.program("benchmark_model", install_tool(tmp_path / "tool").read_text())
    latency = target(board).profile(model, warmup=1, runs=5, details=True)
    assert latency.conditions["runtime"].startswith("ai-edge-litert ")
    assert len(latency.samples_ms) == 5 and latency.memory_mb > 0
    assert "CONV_2D" in {row["type"] for row in latency.per_op}
    assert (
        target(board, runtime="python").profile(model, warmup=0, runs=1, details=True).per_op
        is None
    )
    only = target(board, runtime="benchmark_model", cores="all").profile(model, warmup=0, runs=1)
    assert only.conditions["pinned_cores"] is None and len(only.samples_ms) == 1


def test_the_command_line(board, model, capsys):
    options = f"ssh:{board.host},config={board.config},cores=all,threads=2"
    assert (
        command_line.main(["profile", str(model), "--target", options, "--runs", "2", "--json"])
        == 0
    )
    told = capsys.readouterr().out
    assert '"pinned_cores": null' in told and '"measured": true' in told


@pytest.mark.slow
def test_times_grow_with_the_network(board, model, tmp_path):
    large = tmp_path / "large.tflite"
    large.write_bytes(reference_networks.network("large"))
    times = [min(target(board).time(file, warmup=5, runs=40)) for file in (model, large)]
    assert times[1] > 2 * times[0]


def test_boards_that_were_used_are_found_again(board, model):
    (hint,) = SSH.discover()
    assert "none was used yet" in hint.missing and hint.kind is Kind.MEASURED
    target(board).profile(model, warmup=0, runs=1)
    (found,) = SSH.discover()
    assert found == FoundDevice(
        f"ssh:{board.host},config={board.config}", target(board).device, Kind.MEASURED
    )
    assert registry.target(found.spec).identity() == target(board).identity()
    openssh.disconnect()
    board.stop()
    try:
        begin = time.monotonic()
        (found,) = SSH.discover()
        assert "no ssh server listens on that port" in found.missing and "delete" in found.missing
        assert time.monotonic() - begin < 8
    finally:
        board.start()


@pytest.mark.slow
def test_one_measurement_at_a_time(board, model):
    """The board is the same by whatever name it is called."""
    identifier = board_state.about(target(board)._board()).identifier
    done = []
    other = threading.Thread(
        target=lambda: done.append(target(board, threads=2).profile(model, warmup=0, runs=1))
    )
    with invocations.alone("ssh", identifier, "the board"):
        other.start()
        time.sleep(1.5)
        assert not any("measure" in command for command in board.commands)
    other.join()
    assert len(done) == 1


@pytest.mark.slow
def test_two_at_once_take_turns(board, model):
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(target(board).profile(model, warmup=0, runs=3))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(latency.samples_ms) for latency in results] == [3, 3]


def test_unknown_and_changed_host_keys(board, model, tmp_path, capsys):
    board.trust(None)
    assert _profile(board, model) == 2
    told = capsys.readouterr().err
    assert "its host key is not known yet: connect once by hand" in told
    assert f"`ssh -F {board.config} -p {board.port}" in told
    board.trust(server.make_key(tmp_path / "other"))
    assert _profile(board, model) == 2
    told = capsys.readouterr().err
    assert "its host key is not the one that you accepted before" in told
    assert f"-R '[127.0.0.1]:{board.port}'" in told or f'-R "[127.0.0.1]:{board.port}"' in told
    assert board.commands == []


def test_authentication_fails(board, model, capsys):
    authorized = board.folder / "authorized"
    kept = authorized.read_text()
    authorized.write_text("")
    try:
        assert _profile(board, model) == 2
        told = capsys.readouterr().err
        assert "it does not let you in: `ssh-copy-id" in told and "Permission denied" in told
    finally:
        authorized.write_text(kept)


def test_nothing_listens_no_such_host_and_no_answer(board, model):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(
        TargetUnavailable, match=f"no ssh server listens .*port {port}: Connection refused"
    ):
        SSH(f"pi@127.0.0.1:{port}", config=str(board.config)).profile(model)
    with pytest.raises(TargetUnavailable, match="there is no host of this name"):
        SSH("pi@no.such.host.invalid", config=str(board.config)).profile(model)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = openssh.address(f"pi@127.0.0.1:{silent.getsockname()[1]}", None, str(board.config))
        begin = time.monotonic()
        with pytest.raises(TargetUnavailable, match="it does not answer: is it on"):
            openssh.Board(where, connect_s=1)
        assert time.monotonic() - begin < 5


def test_no_client(board, model, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TargetUnavailable, match="ssh is not installed: `apt-get install"):
        target(board).profile(model)


@pytest.mark.parametrize(
    ("everything", "runtime"),
    [
        pytest.param(False, "python"),
        pytest.param(False, "benchmark_model", marks=pytest.mark.slow),
        pytest.param(True, "python", marks=pytest.mark.slow),
        pytest.param(True, "benchmark_model"),
    ],
)
def test_a_connection_that_breaks_in_mid_run(
    board, model, tmp_path, monkeypatch, runtime, everything
):
    """Unavailable within seconds, not hung; back again, what was left is removed."""
    hung = install_tool(tmp_path / "hung", HUNG)
    options = {"runtime": runtime, "benchmark": str(hung), "python": _hung_python(board, tmp_path)}
    running = []

    def cut():
        _until(lambda: list((board.folder / "tmp").rglob("started")))
        running.extend(board.processes())
        board.cut(everything)

    cutting = threading.Thread(target=cut, daemon=True)
    cutting.start()
    begin = time.monotonic()
    with pytest.raises(TargetUnavailable, match=f"lost board {board.host}"):
        target(board, **options).profile(model, warmup=0, runs=1)
    assert time.monotonic() - begin < 20
    cutting.join()
    (board.folder / "tmp/started").unlink(missing_ok=True)
    assert running
    if not everything:  # what runs there sees that this side is gone, and tidies up by itself
        assert _until_none(board.processes) == [] and _until_none(board.left) == []
    elif runtime == "benchmark_model":
        assert len(board.left()) == 1
    assert target(board).profile(model, warmup=0, runs=1).measured
    assert board.left() == []


@pytest.mark.parametrize(
    "runtime", ["python", pytest.param("benchmark_model", marks=pytest.mark.slow)]
)
def test_what_hangs(board, model, tmp_path, runtime):
    hung = install_tool(tmp_path / "hung", HUNG)
    options = {"runtime": runtime, "benchmark": str(hung), "python": _hung_python(board, tmp_path)}
    with pytest.raises(TargetUnavailable, match="hangs on board .*: ended after 2 s"):
        target(board, limit_s=2, **options).profile(model, warmup=0, runs=1)
    (board.folder / "tmp/started").unlink(missing_ok=True)
    openssh.disconnect()
    assert _until_none(board.processes) == []


def test_this_process_is_killed_in_mid_run(board, model, tmp_path):
    """Nobody is there to tidy up: the board does it, and no ssh goes on running here."""
    hung = install_tool(tmp_path / "hung", HUNG)
    code = (
        "import sys; from latency.ssh import SSH; "
        f"SSH({board.host!r}, config={str(board.config)!r}, benchmark={str(hung)!r}, "
        f"runtime='benchmark_model').profile({str(model)!r}, warmup=0, runs=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        _until(lambda: list((board.folder / "tmp").rglob("started")))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _until_none(board.processes) == [] and _until_none(board.left) == []
    ours = ["pgrep", "-f", f"ssh.*{board.config}"]
    assert _until_none(lambda: subprocess.run(ours, capture_output=True).stdout.split()) == []


def test_full_disk(board, model, tool, capsys):
    """No room at all, and a disk that is full though it does not say so: a quota."""
    tmpfs = ["mount", "-t", "tmpfs", "-o", "size=128k", "none"]
    places = [board.folder / "tmp", board.folder / "home"]
    mounted = [place for place in places if subprocess.run([*tmpfs, place]).returncode == 0]
    try:
        if len(mounted) < 2:
            pytest.skip("no file system can be mounted here")
        assert _profile(board, model, "runtime=benchmark_model") == 2
        told = capsys.readouterr().err
        assert "has no place for benchmark_model: in its temporary folder no room for" in told
        assert board.left() == []
        latency = target(board).profile(model, warmup=0, runs=1, details=True)  # Python needs none
        assert "has no place" in latency.conditions["operations_missing"]
    finally:
        for place in mounted:
            subprocess.run(["umount", place], check=True)


def test_a_quota(board, model, tool, capsys):
    limit = board.folder / "limit"
    limit.write_text("16")  # blocks of 512 bytes that a file may have
    try:
        assert _profile(board, model, "runtime=benchmark_model") == 2
        assert "has no room for" in capsys.readouterr().err
    finally:
        limit.unlink()


def test_hot_board(board, model, capsys):
    board.heat(88.5)
    assert _profile(board, model) == 2
    told = capsys.readouterr().err
    assert "is too hot to measure: it has 88.5 C, the limit is 70 C" in told
    board.heat(50)
    board.throttle(0x50004)
    with pytest.raises(TargetUnavailable, match="it throttles .*0x50004"):
        target(board).profile(model)
    assert not any("measure" in command for command in board.commands), "it ran nevertheless"
    board.throttle(0x50000)  # it did some time ago
    latency = target(board).profile(model, warmup=0, runs=1)
    assert latency.conditions["throttled"] == "0x50000"
    assert "throttled" not in latency.conditions.get("reason", "")


@pytest.mark.slow
def test_it_waits_for_a_board_to_cool(board, model):
    board.heat(88)

    def cool():
        _until(lambda: sum("thermal" in command for command in board.commands) > 1)
        board.heat(60)

    threading.Thread(target=cool, daemon=True).start()
    latency = target(board, cool_down_s=20.0).profile(model, warmup=0, runs=1)
    assert latency.conditions["temperature_c"] == 60 and latency.conditions["waited_s"] > 1


def test_a_board_without_litert(board, model):
    (board.folder / "bin/python3").rename(board.folder / "bin/hidden")
    try:
        with pytest.raises(
            TargetUnavailable, match=f"no Python with LiteRT: .*pip install.*; or .*{ARCH} is miss"
        ):
            target(board).profile(model)
        with pytest.raises(TargetUnavailable, match="no LiteRT in /usr/bin/python3: "):
            target(board, python="/usr/bin/python3").profile(model)
        with pytest.raises(TargetUnavailable, match="benchmark_model for linux-.* is missing"):
            target(board, runtime="benchmark_model").profile(model)
        place = board.folder / "home/venv/bin"
        place.mkdir(parents=True)
        shutil.copy(board.folder / "bin/hidden", place / "python")
        assert target(board).profile(model, warmup=0, runs=1).measured, "that of ~/venv is found"
        assert target(board, python="~/venv/bin/python").profile(model, warmup=0, runs=1).measured
    finally:
        (board.folder / "bin/hidden").rename(board.folder / "bin/python3")
        shutil.rmtree(board.folder / "home/venv", ignore_errors=True)


def test_a_litert_that_does_not_start_is_killed_or_cannot_read_the_network(board, model, tmp_path):
    broken = _python_with(board, tmp_path / "broken", "raise ImportError('libfoo.so.1 is missing')")
    with pytest.raises(TargetUnavailable, match="does not start: .*libfoo.so.1 is missing.*inst"):
        target(board, python=broken).profile(model)
    killed = _python_with(board, tmp_path / "killed", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ValueError, match="killed LiteRT while .*: is its memory full"):
        target(board, python=killed).profile(model)
    old = HUNG_LITERT.replace(
        "def allocate",
        "def allocate_tensors(self): raise RuntimeError("
        "'Didn\\'t find op for builtin opcode')\n    def _",
        1,
    )
    with pytest.raises(ValueError, match="cannot run it: Didn't find op for builtin opcode"):
        target(board, python=_python_with(board, tmp_path / "old", old)).profile(model)


def test_a_tool_for_another_machine_and_one_that_fails(board, model, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x7fELF\2\1\1" + bytes(11) + (183).to_bytes(2, "little") + bytes(100))
    options = {"runtime": "benchmark_model"}
    if platform.machine() != "aarch64":
        with pytest.raises(ValueError, match="built for aarch64, the device needs one for linux-"):
            target(board, benchmark=str(foreign), **options).profile(model)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x00\x01garbage")
    with pytest.raises(ValueError, match="cannot execute benchmark_model"):
        target(board, benchmark=str(garbage), **options).profile(model)
    failing = install_tool(tmp_path / "failing", "#!/bin/sh\necho ERROR: no such op\nexit 3\n")
    with pytest.raises(ValueError, match="status 3 on board .*: ERROR: no such op"):
        target(board, benchmark=str(failing), **options).profile(model)
    killed = install_tool(tmp_path / "killed", "#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(ValueError, match="killed: is its memory full"):
        target(board, benchmark=str(killed), **options).profile(model)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x1c\0\0\0TFL3" + 50 * b"\xff"])
def test_hostile_files_do_not_reach_the_board(board, tmp_path, capsys, content):
    file = tmp_path / "a $(touch owned) `b`;.tflite"
    file.write_bytes(content)
    assert _profile(board, file) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("nas: ")
    assert board.commands == []


def test_names_are_never_read_by_a_shell(board, model, tmp_path):
    odd = tmp_path / "-x $(touch owned) `touch owned`; 'q\".tflite"
    shutil.copy(model, odd)
    tool = install_tool(tmp_path / "$(touch owned) tool; ")
    for options in ({}, {"runtime": "benchmark_model", "benchmark": str(tool)}):
        assert target(board, **options).profile(odd, warmup=0, runs=1).measured
    assert not any("owned" in command for command in board.commands)
    assert not list(tmp_path.rglob("owned")) and not list(board.folder.rglob("owned"))


@pytest.mark.parametrize(
    "text",
    ["ssh", "ssh:-oProxyCommand=x", "ssh:pi@-oProxyCommand", "ssh:$(x)@host", "ssh:pi@host;ls"]
    + ["ssh:pi@host name", "ssh:-l@host", "ssh:pi@ho`x`st", "ssh:pi@host:0", "ssh:pi@host:99999"]
    + ["ssh:pi@host:22,port=23", "ssh:host,port=x", "ssh:1.5", "ssh:pi@[::1", "ssh:pi@%h"]
    + ["ssh:h,threads=0", "ssh:h,cores=9-4", "ssh:h,cores=4;ls", "ssh:h,limit_s=0"]
    + ["ssh:h,runtime=java", "ssh:h,python=$(x)", "ssh:h,python=-c", "ssh:h,python=a;b"]
    + ["ssh:h,config=/none", "ssh:h,cool_down_s=nan", "ssh:pi@host\n-x"],
)
def test_options_are_checked_where_they_come_in(text):
    with pytest.raises(ValueError, match="expected"):
        registry.target(text)


def test_options(board, tmp_path, monkeypatch):
    assert registry.target("ssh:pi@host:2222,threads=4") == SSH("pi@host:2222", threads=4)
    assert openssh.address("pi@host:2222").words() == ["-p", "2222", "--", "pi@host"]
    assert openssh.address("mypi").words() == ["--", "mypi"]
    assert openssh.address("pi@[fe80::1%eth0]:22").host == "fe80::1%eth0"
    assert openssh.address("::1", 22).words() == ["-p", "22", "--", "::1"]
    monkeypatch.setenv("NAS_SSH_CONFIG", str(board.config))
    assert SSH(board.host).device == target(board).device
    with pytest.raises(ValueError, match="threads=64: there are .* cores for them"):
        target(board, threads=64).identity()
    with pytest.raises(ValueError, match="the board has no core 63"):
        target(board, cores="63").identity()


@pytest.mark.slow
def test_a_name_of_the_users_own_configuration(board, model):
    """Host, user and port from the file, and options there that would spoil the connection."""
    name, _, port = board.host.rpartition(":")
    own = board.folder / "own"
    own.write_text(
        f"Host mypi\n  HostName {name.partition('@')[2]}\n  User {name.partition('@')[0]}\n"
        f"  Port {port}\n  RequestTTY yes\n  RemoteCommand top\n  LocalForward 1 127.0.0.1:2\n"
        f"  ControlMaster auto\n  ControlPath {board.folder}/theirs\n  ControlPersist yes\n"
        + board.config.read_text()
    )
    assert SSH("mypi", config=str(own)).profile(model, warmup=0, runs=1).measured
    assert not (board.folder / "theirs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "busybox", "mksh"])
def test_other_shells_than_debians(board, model, tool, shell):
    """`sh` is not dash everywhere: bash on Fedora, busybox on Buildroot and Alpine."""
    found = shutil.which(shell)
    if not found:
        pytest.skip(f"no {shell} here")
    board.program("sh", f'#!/bin/dash\nexec {found} {"sh" if shell == "busybox" else ""} "$@"\n')
    for runtime in ("python", "benchmark_model"):
        pi = target(board, runtime=runtime)
        assert pi.profile(model, warmup=0, runs=2, details=True).measured
    hung = install_tool(tool, HUNG)
    with pytest.raises(TargetUnavailable, match="hangs on board"):
        target(board, runtime="benchmark_model", benchmark=str(hung), limit_s=2).profile(model)


@pytest.mark.slow
def test_login_shells_that_greet(board, model):
    """A .bashrc that prints something in every session."""
    session = board.folder / "session"
    kept = session.read_text()
    session.write_text(kept.replace("#!/bin/sh\n", "#!/bin/sh\necho nas-result Welcome; echo hi\n"))
    try:
        assert target(board).profile(model, warmup=0, runs=2).measured
        session.write_text("#!/bin/sh\necho This account is not available.; exit 1\n")
        session.chmod(0o755)
        openssh.disconnect()
        with pytest.raises(TargetUnavailable, match="This account is not available"):
            target(board).profile(model)
    finally:
        session.write_text(kept)


def test_state_of_boards():
    """What boards print, as found on a Raspberry Pi 4 and a Jetson."""
    lines = [f"{n} {'-' if not n else 1} 446 1800000 1800000 600000 ondemand" for n in range(4)]
    lines += [f"{n} 1 1024 2400000 2400000 408000 ondemand" for n in (4, 5)]
    lines += ["6 0 - - - - -"]
    told = (
        "nas-load\n0.31 0.2 0.1 1/200 999\nnas-uptime\n86400.1 3\n"
        "nas-allowed\nCpus_allowed_list:\t0-5\nnas-thermal\n41000 CPU-therm\n100000 PMIC-Die\n\n"
        "nas-throttled\nthrottled=0x50000\nnas-cores\n" + "\n".join(lines) + "\n"
    )
    state = board_state.parse(told)
    assert state.temperature_c == 41 and state.throttled == 0x50000 and state.uptime_s == 86400.1
    assert state.fastest(1) == [5] and state.fastest(2) == [4, 5] and state.fastest(3) == [3, 4, 5]
    assert list(state.cores) == list(range(6)) and state.cores[4].allowed_mhz == 2400
    assert state.too_hot(40) and state.too_hot(45) is None

    def doubts(**changes):
        return board_state.instabilities(state, dataclasses.replace(state, **changes))

    assert doubts() == []
    assert doubts(throttled=0x50005) == [
        "it throttled meanwhile (get_throttled: 0x50005)",
        "its supply is too weak (under-voltage): its clock is lowered",
    ]
    assert doubts(throttled=0xD0000)[0].startswith("it throttled meanwhile")
    slow = dataclasses.replace(state.cores[5], allowed_mhz=1200)
    assert doubts(cores=state.cores | {5: slow}) == [
        "the highest clock of cores [5] was lowered meanwhile"
    ]
    bare = board_state.parse(
        "nas-load\nnas-uptime\nnas-allowed\nnas-thermal\nnas-throttled\nnas-cores\n"
    )
    assert bare.temperature_c is None and bare.fastest(1) is None and bare.governor is None


def test_programs_are_told_apart_by_machine(tmp_path):
    def elf(machine: int, rest: bytes = b"") -> str:
        path = tmp_path / str(machine)
        path.write_bytes(b"\x7fELF\2\1\1" + bytes(11) + machine.to_bytes(2, "little") + rest)
        return str(path)

    assert benchmark_model.find("linux-aarch64", elf(183)) and benchmark_model.find(
        "arm64-v8a", elf(183, b"/system/bin/linker64")
    )
    assert benchmark_model.find("linux-armv6l", elf(40))
    with pytest.raises(ValueError, match="built for aarch64 Android, .* linux-aarch64"):
        benchmark_model.find("linux-aarch64", elf(183, b"/system/bin/linker64"))
    with pytest.raises(ValueError, match="built for x86_64, the device needs one for arm64-v8a"):
        benchmark_model.find("arm64-v8a", elf(62))


def test_what_the_board_runs_is_understood_by_old_pythons():
    import ast

    with open(python_script.__file__) as file:
        ast.parse(file.read(), feature_version=(3, 6))


def test_importing_the_target_starts_nothing_and_needs_little():
    code = "import sys, latency.ssh; print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]


def _python_with(board, folder, litert: str) -> str:
    """A Python on the board with this as its LiteRT."""
    package = folder / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(litert)
    script = f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n'
    (folder / "python").write_text(script)
    (folder / "python").chmod(0o755)
    return str(folder / "python")


def _hung_python(board, folder) -> str:
    return _python_with(board, folder / "python-that-hangs", HUNG_LITERT)


def _profile(board, file, *more: str) -> int:
    options = ",".join([f"ssh:{board.host}", f"config={board.config}", "cool_down_s=0", *more])
    return command_line.main(["profile", str(file), "--target", options, "--runs", "1"])


def _until(work, limit_s: float = 20):
    """What `work` returns once it is something."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = work()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def _until_none(work, limit_s: float = 5):
    """What `work` returns at last: nothing, if that comes about in time."""
    end = time.monotonic() + limit_s
    while (found := work()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
