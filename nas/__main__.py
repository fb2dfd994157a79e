"""`nas`, and `python -m nas`: the command line, whose first moments Ctrl-C may end, too."""

import signal
import sys


def main() -> int:
    """Run one command; its exit status (`nas.cli.command_line.main`)."""
    try:
        from nas.cli import command_line

        return command_line.main()
    except KeyboardInterrupt:  # before the command began
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the interpreter ends: no traceback


if __name__ == "__main__":
    sys.exit(main())
