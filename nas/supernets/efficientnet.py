"""EfficientNets, and those of EfficientNet-X that keep their images, as networks of a supernet."""

from families.efficientnet import Block, Config
from nas.supernets.layers import ACTIVATIONS
from nas.supernets.outline import Outline, Stage, outlined, staged


def outline(config: Config) -> Outline:
    """ValueError of blocks in a layout: theirs are other weights, of four times the channels."""
    activations = {config.activation, *(block.activation for block in config.blocks)}
    for name in activations.difference(ACTIVATIONS):
        raise ValueError(f"no supernet has {name} (there is: {', '.join(ACTIVATIONS)})")
    if any(block.layout != "none" for block in config.blocks):
        raise ValueError(
            "no supernet has space-to-depth or space-to-batch: search with --evaluator train, or"
            " without them: --space efficientnet_x:BASE,layouts=false"
        )
    return outlined(config, map(_stage, config.blocks), config.activation)


def _stage(block: Block) -> Stage:
    # Without expansion it is another operation, as in MnasNet's words.
    operation = "depthwise" if (block.op, block.expand) == ("mbconv", 1) else block.op
    return staged(block, operation, "identity" if block.skip else "none", block.activation)
