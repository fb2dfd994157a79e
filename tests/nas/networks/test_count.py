"""`nas count` and networks without memory for their weights."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from families import mnasnet
from families.layers import shapes_only
from latency.networks import count
from nas.cli.command_line import main


def _counted(capsys, *arguments):
    assert main(["count", *arguments, "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_weights_hold_nothing_and_are_never_given_values():
    with shapes_only():
        inputs = keras.Input((10**6,))
        model = keras.Model(inputs, keras.layers.Dense(10**6)(inputs))  # 4 TB
    with keras.StatelessScope():  # leaving one gives Keras's uninitialized variables their values
        pass
    assert model.count_params() == 10**12 + 10**6
    assert all(weight._value is None for weight in model.weights)
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    assert layer.kernel.numpy().shape == (3, 2)


def test_an_error_inside_leaves_keras_as_it_was():
    with pytest.raises(ZeroDivisionError), shapes_only():
        keras.layers.Dense(10**6).build((None, 10**6))
        1 / 0  # noqa: B018
    with keras.StatelessScope():
        layer = keras.layers.Dense(2)
        layer.build((None, 3))
    assert np.isfinite(layer.kernel.numpy()).all()  # and no terabytes before it


def test_counts_of_shapes_are_those_of_the_network():
    config = mnasnet.VARIANTS["tiny"]
    with shapes_only():
        shapes = count.count(mnasnet.build(config))
    assert shapes == count.count(mnasnet.build(config))


def test_images_have_parameters_and_multiply_adds(capsys):
    row = _counted(capsys, "mnasnet:a1", "--batch", "2")["mnasnet:a1"]
    whole = count.count(mnasnet.build(mnasnet.VARIANTS["a1"]))
    assert row["params"] == row["active_params"] == whole.total_params
    assert row["macs"] == 2 * whole.macs
    assert row["float32_bytes"] == 2 * row["bfloat16_bytes"] == 4 * whole.total_params
    assert row["kv_bytes"] is row["prefill_macs"] is row["tokens"] is None


def test_texts_have_a_step_and_a_cache(capsys):
    short, long = (
        _counted(capsys, "decoder:afm_2025_draft", "--tokens", tokens)["decoder:afm_2025_draft"]
        for tokens in ("100", "200")
    )
    assert short["tokens"] == 100 and long["kv_bytes"] == 2 * short["kv_bytes"]
    assert short["kv_bytes"] == 100 * 12 * 2 * 128 * 2
    attention = 12 * 2 * 256 * 100  # what 100 more keys cost one token
    assert long["step_macs"] - short["step_macs"] == attention
    assert short["prefill_macs"] < short["macs"]


def test_a_family_alone_is_all_its_variants_in_a_table(capsys):
    assert main(["count", "mnasnet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : lines.index("")]] == [
        f"mnasnet:{variant}" for variant in mnasnet.VARIANTS
    ]
    assert "3,920,526" in lines[1] and "KV" not in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnasnet:a9"], "mnasnet has no variant 'a9' (there is: a1, b1"),
        (["mnasnett"], "no family 'mnasnett'; did you mean 'mnasnet'?"),
        (["mnasnet:a1,size=3"], "expected FAMILY or FAMILY:VARIANT"),
        (["mnasnet:a1", "--batch", "0"], "--batch 0; expected at least 1"),
    ],
)
def test_what_is_unknown_is_said_in_one_line(capsys, arguments, message):
    assert main(["count", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_47_billion_parameters_need_no_memory():
    code = (
        "import resource, sys; from nas.cli.command_line import main; main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, "count", "decoder:mixtral_8x7b", "--json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    counts, kilobytes = found.stdout.rsplit("\n", 2)[:2]
    row = json.loads(counts)[0]
    assert (row["params"], row["active_params"]) == (46_702_792_704, 12_879_925_248)
    assert int(kilobytes) < 2e6
