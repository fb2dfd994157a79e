"""`python -m nas` is `nas`."""

import sys

from nas.main import main

if __name__ == "__main__":
    sys.exit(main())
