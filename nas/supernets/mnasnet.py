"""MnasNets as networks of a supernet."""

from families.mnasnet import Config
from nas.supernets.outline import Outline, outlined, staged


def outline(config: Config) -> Outline:
    return outlined(config, (staged(block, block.op, block.skip) for block in config.blocks))
