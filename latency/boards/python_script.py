"""What a board runs: times a network with its own Python LiteRT and prints JSON. Sent as text.

It imports nothing of ours and nothing newer than Python 3.6 (old Jetsons). `probe` as argument: it
tells which runtime there is. Else its input is a line of JSON, then the network; the input stays
open, and where it ends, the other side is gone and it ends too.
"""

import importlib
import importlib.util
import json
import os
import platform
import signal
import sys
import threading
import time

_RUNTIMES = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))
_STRETCH_S = 0.15  # of warm-up: a governor raises the clock within some 20 ms
_STEADY = 0.03  # two stretches in a row whose medians differ less are warm
_WARM_LIMIT_S = 3.0


def tell(**fields):
    """Prints the result; whatever else LiteRT or a login shell prints is not marked so."""
    sys.stdout.write("\nnas-result " + json.dumps(fields) + "\n")
    sys.stdout.flush()


def runtime():
    """Module, name and version of the LiteRT that is installed; None where there is none."""
    for module, package in _RUNTIMES:
        if importlib.util.find_spec(module) is None:
            continue
        try:
            from importlib import metadata

            version = metadata.version(package)
        except Exception:  # before Python 3.8, or installed without metadata
            version = getattr(importlib.import_module(module), "__version__", "of unknown version")
        return module, package, version
    return None


def probe():
    """Tells which runtime there is; status 1 where there is none."""
    found = runtime()
    if found is None:
        return 1
    about = found[1] + " " + found[2] + ", Python " + platform.python_version()
    tell(runtime=about)
    return 0


def clock(name):
    """Seconds of a clock of the system."""
    return time.clock_gettime(getattr(time, "CLOCK_" + name))


def others(cores):
    """Seconds that all processes together had these cores (all cores, where none are named)."""
    wanted = ["cpu%d" % core for core in cores] if cores else ["cpu"]  # noqa: UP031
    with open("/proc/stat") as stat:
        rows = [line.split() for line in stat]
    # user, nice, system, irq, softirq and steal: what is neither idle nor waiting
    busy = sum(int(row[i]) for row in rows if row[0] in wanted for i in (1, 2, 3, 6, 7, 8))
    return busy / os.sysconf("SC_CLK_TCK")


def memory_mb(field):
    """A field of the process' status in MB (1e6 bytes), None where the system has none."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def clocks_mhz(cores):
    """The clocks of these cores now, where the system tells."""
    found = []
    for core in cores:
        path = "/sys/devices/system/cpu/cpu" + str(core) + "/cpufreq/scaling_cur_freq"
        try:
            with open(path) as file:
                found.append(int(file.read()) // 1000)
        except (OSError, ValueError):
            pass
    return found


def warm_up(run, least):
    """Runs until two stretches agree; how often it ran, and whether they did."""
    begin, count, last = clock("MONOTONIC"), 0, None
    while True:
        start, times = clock("MONOTONIC"), []
        while clock("MONOTONIC") - start < _STRETCH_S:
            before = clock("MONOTONIC")
            run()
            times.append(clock("MONOTONIC") - before)
        count += len(times)
        median = sorted(times)[len(times) // 2]
        if count >= least:
            if last is not None and abs(median / last - 1) < _STEADY:
                return count, True
            if clock("MONOTONIC") - begin > _WARM_LIMIT_S:
                return count, False
        last = median


def end_with_input():
    """Waits until the other side is gone."""
    os.read(0, 1)
    os._exit(1)


def measure():
    """Times the network that comes in; tells what it found, or what went wrong."""
    request = json.loads(sys.stdin.buffer.readline().decode())
    model = sys.stdin.buffer.read(request["model_bytes"])
    threading.Thread(target=end_with_input, daemon=True).start()
    signal.alarm(int(request["limit_s"]) + 60)  # the network may fall silent without an end
    cores, threads = request["cores"] or [], request["threads"]
    if cores:
        os.sched_setaffinity(0, cores)  # before the runtime starts its threads
    found = runtime()
    try:
        Interpreter = importlib.import_module(found[0] + ".interpreter").Interpreter
        import numpy
    except Exception as error:
        return tell(error="import", reason=repr(error))
    try:
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")  # the peak of memory counts from here
    except OSError:
        pass
    before_mb, begin = memory_mb("VmRSS"), clock("MONOTONIC")
    try:
        interpreter = Interpreter(model_content=model, num_threads=threads)
        interpreter.allocate_tensors()
        random = numpy.random.RandomState(0)
        for entry in interpreter.get_input_details():
            # What memory held before may be denormals.
            values = random.random_sample(tuple(entry["shape"])).astype(entry["dtype"])
            interpreter.set_tensor(entry["index"], values)
        interpreter.invoke()
    except MemoryError:
        return tell(error="memory", reason="out of memory")
    except Exception as error:
        return tell(error="model", reason=str(error))
    init_ms = 1e3 * (clock("MONOTONIC") - begin)
    run = interpreter.invoke
    warmup_runs, warm = warm_up(run, request["warmup"]) if request["warmup"] else (1, None)
    # The clock of the thread tells its time on the core, but nothing of a pool's other threads.
    cpu = "THREAD_CPUTIME_ID" if threads == 1 else "PROCESS_CPUTIME_ID"
    walls, cpus = [], []
    start, busy, own = clock("MONOTONIC"), others(cores), clock("PROCESS_CPUTIME_ID")
    for _ in range(request["runs"]):
        busy_before, before = clock(cpu), clock("MONOTONIC")
        run()
        walls.append(1e3 * (clock("MONOTONIC") - before))
        cpus.append(1e3 * (clock(cpu) - busy_before))
    mhz = clocks_mhz(cores)
    passed = clock("MONOTONIC") - start
    busy, own = others(cores) - busy, clock("PROCESS_CPUTIME_ID") - own
    peak_mb = memory_mb("VmHWM")
    return tell(
        samples_ms=walls,
        cpu_ms=cpus,
        # Ticks of 10 ms say nothing of a short measurement.
        others_cores=round(max(0.0, busy - own) / passed, 3) if passed > 0.5 else None,
        clocks_mhz=mhz,
        warmup_runs=warmup_runs,
        warm=warm,
        init_ms=init_ms,
        memory_mb=None if None in (peak_mb, before_mb) else max(0.0, peak_mb - before_mb),
        loaded=found[1] + " " + found[2],
        affinity=sorted(os.sched_getaffinity(0)),
    )


if __name__ == "__main__":
    status = probe() if sys.argv[1:] == ["probe"] else measure()
    sys.stdout.flush()
    os._exit(status or 0)  # a thread still waits for input
