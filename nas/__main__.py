"""`nas`, and `python -m nas`: the command line, with its first and its last moments."""

import atexit
import os
import signal
import sys


def main() -> int:
    """Run one command; its exit status (`nas.cli.command_line.main`)."""
    try:
        from nas.cli import command_line

        code = command_line.main()
    except KeyboardInterrupt:  # before the command began
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on it just ends
    # What is left is to take the interpreter apart, which with TensorFlow costs two seconds of CPU.
    if "tensorflow" in sys.modules or "jax" in sys.modules:
        atexit._run_exitfuncs()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
