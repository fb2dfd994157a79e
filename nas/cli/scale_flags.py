"""The flags of `nas scale`; imports nothing heavy."""

import argparse

EPILOG = """examples:
  nas scale mnasnet:tiny --budget-ms 0.05,0.1,0.2,0.4 --task fashion_mnist --out family
  nas scale runs/mnas1 --budget-ms 2,4,8,16 --target cpu --task fashion_mnist --out family \\
            --trials 20 --seeds 0,1,2
For each budget it leaves a .keras, a .tflite and a .py (its Config), named after it; those of
single-objective scaling end in _single. family.py holds all Configs, result.json all figures,
ladder.png both ladders. The same command again goes on where it was; more --trials extend it."""


def add(commands, common) -> None:
    """Add the command to the subparsers `commands`; `common` are the flags of all."""
    scale = commands.add_parser(
        "scale",
        parents=[common],
        help="make a family of a network: depth, width and resolution for each latency budget",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    scale.add_argument(
        "base", help="family:variant, or what a search found: its folder or its config.py"
    )
    scale.add_argument("--budget-ms", required=True, help="the ladder, as 2,4,8,16")
    scale.add_argument("--task", required=True, help="images to train on, see `nas list task`")
    scale.add_argument("--out", required=True, help="folder of the family")
    scale.add_argument("--target", default="cpu:threads=1", help="device to time on (%(default)s)")
    scale.add_argument("--input", type=int, help="pixels of the base's images (the task's)")
    how = scale.add_argument_group("how to search")
    how.add_argument("--trials", type=int, help="networks to train for each budget (12)")
    how.add_argument("--minutes", type=float, help="end after this long, instead of --trials")
    how.add_argument(
        "--epochs",
        type=int,
        help="epochs of a trial (a third of the task's, or 4); the best get three times",
    )
    how.add_argument(
        "--finalists", type=int, default=1, help="trained for longer, a budget (%(default)s)"
    )
    how.add_argument(
        "--seeds", default="0", help="of the final trainings, as 0,1,2: means (%(default)s)"
    )
    how.add_argument(
        "--controller", default="surrogate:startup=4", help="see `nas list` (%(default)s)"
    )
    how.add_argument("--seed", type=int, default=0, help="of the search (%(default)s)")
