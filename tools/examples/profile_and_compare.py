"""Two networks of your own, timed in turns on this CPU, and the time of each operation.

$ python profile_and_compare.py
"""

import keras

import nas
from latency.cpu import CPU


def network(name: str, convolution: type[keras.layers.Layer]) -> keras.Model:
    layers = [keras.Input((32, 32, 8))]
    layers += [convolution(32, 3, padding="same", activation="relu") for _ in range(3)]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential(layers, name=name)


dense = network("dense", keras.layers.Conv2D)
separable = network("separable", keras.layers.SeparableConv2D)

found = nas.profile([dense, separable], CPU(threads=1), runs=30, operations=True)
print(found)  # a table; in a notebook the same as HTML
print(found.operations())  # explain=True and found.explanations() say what bounds each of them

first, second = found  # a list of nas.Latency
low, high = second.interval_ms
print(f"separable: {second.median_ms:.3f} ms, 95 % interval {low:.3f} to {high:.3f} ms")
print(f"{first.median_ms / second.median_ms:.2f}x faster; every figure is {second.kind.value}")
