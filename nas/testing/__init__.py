"""What every plug-in must hold, as functions: for its author's tests, and used by our own.

Each raises `AssertionError` (a promise that is not kept) or `ValueError` (what cannot be read),
and says what came and what was expected. From pytest:

    from nas import testing
    import my_family, my_board

    def test_my_family():
        testing.check_family(my_family)

    def test_my_board():
        testing.check_target(my_board.Board(factor=2))
"""

from nas import backend

backend.choose()  # before Keras is imported

from nas.testing.controllers import check_controller  # noqa: E402
from nas.testing.families import check_family  # noqa: E402
from nas.testing.layers import check_layer  # noqa: E402
from nas.testing.methods import check_method  # noqa: E402
from nas.testing.spaces import check_space  # noqa: E402
from nas.testing.targets import check_target  # noqa: E402
from nas.testing.tasks import check_task  # noqa: E402

__all__ = [
    "check_controller",
    "check_family",
    "check_layer",
    "check_method",
    "check_space",
    "check_target",
    "check_task",
]
