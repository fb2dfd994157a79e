"""Two real nodes of Ray, real kills: the scenes of tools/bench_ray.py, and what they must show."""

import pathlib
import shutil
import sys

import pytest

from latency.measuring import reference_networks
from latency.ray_cluster import cluster
from nas import registry
from nas.testing import check_target

pytest.importorskip("ray")
postgresql = pytest.importorskip("postgresql")

TOOLS = pathlib.Path(__file__).parents[3] / "tools"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgresql.INITDB is None, reason="no PostgreSQL: apt-get install it"),
]


@pytest.fixture(scope="module")
def bench():
    sys.path.append(str(TOOLS))
    import bench_ray

    yield bench_ray
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def scene(bench, tmp_path_factory):
    with postgresql.running() as server:
        made = bench.Scene(tmp_path_factory.mktemp("scene"), server.url)
        yield made
        made.nodes.stop()


def test_the_contract_of_a_target(scene, tmp_path):
    cluster.connect(scene.nodes.address)
    model = tmp_path / "model.tflite"
    model.write_bytes(reference_networks.network("small"))
    check_target(registry.target("ray:cpu:threads=1"), model)


def whole(row, bench):
    """Nothing lost, nothing twice, nothing left."""
    assert row["exit"] == 0 and row["distinct"] == row["trained"] == bench.TRIALS, row
    assert row["left_running"] == 0 and row["workers_left"] == 0, row


def test_a_worker_killed_in_a_trial(bench, scene):
    row = bench.kill_worker(scene)
    whole(row, bench)
    assert row["given_back"] >= 1 and row["returned_s"] < 60


def test_the_driver_killed(bench, scene):
    row = bench.kill_driver(scene)
    whole(row, bench)
    assert row["workers_end_s"] < 30


def test_what_the_cluster_has_not_is_refused(bench, scene):
    row = bench.infeasible(scene)
    assert row["exit"] == 2 and "no room for GPU=1" in row["says"]


def test_gangs_do_not_block_each_other(bench, scene):
    row = bench.gangs(scene, count=4)
    assert row["ended"] == 4 and row["overlaps"] == 0
    assert row["sharing_one_ended"] == 6 and row["sharing_one_overlaps"] == 0
    assert "no room for slot=2" in row["refused"]


@pytest.mark.skipif(not shutil.which("adb"), reason="no adb: apt-get install adb")
def test_three_phones_and_six_workers(bench, scene):
    row = bench.farm(scene, each=3)
    assert row["measurements"] == row["asked"] and row["overlaps"] == 0
    assert all(count > 0 for count in row["invocations"])


@pytest.mark.skipif(not shutil.which("adb"), reason="no adb: apt-get install adb")
def test_the_node_of_the_phones_killed(bench, scene):
    row = bench.phones_node(scene)
    assert row["unavailable_after_s"] < 60 and row["timed_again_after_s"] < 120
