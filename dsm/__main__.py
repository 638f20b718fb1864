"""``python -m dsm`` is the command ``dsm``."""

import sys

from dsm.cli import main

if __name__ == "__main__":
    sys.exit(main())
