"""Networks whose weights are codes, without any method: what writers are tested on."""

import numpy as np

from compress.rewriting.record import Record, Weight

LEVELS = {2: np.float32([-1.5, -0.5, 0.5, 1.5])}


def coded(model, bits=2, groups=1, density=None, least=16, seed=0, chosen=None) -> Record:
    """Sets all kernels of at least `least` weights to drawn codes; the record says which.

    `bits` 32: masks only. `density` of the weights are kept. `chosen(path)`: which to take.
    """
    generator = np.random.default_rng(seed)
    record = Record(original=model)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) < 2 or np.prod(shape) < least or (chosen and not chosen(weight.path)):
            continue
        mask = None if density is None else generator.random(shape) < density
        if bits == 32:
            known = Weight(mask=mask)
            value = np.where(mask, np.asarray(weight), 0)
        else:
            parts = groups if shape[-1] % groups == 0 else 1
            levels = LEVELS.get(bits, np.arange(2**bits, dtype=np.float32) - 2 ** (bits - 1) + 0.5)
            levels = np.stack([levels * (1 + n) for n in range(parts)])
            scale = generator.uniform(0.01, 0.1, (*[1] * (len(shape) - 1), shape[-1]))
            codes = generator.integers(0, 2**bits, shape).astype(np.uint8)
            known = Weight(bits, codes, levels, scale.astype(np.float32), mask)
            value = known.dense()
        weight.assign(value)
        record.weights[weight.path] = known
    assert record.weights and not list(record.check(model))
    return record
