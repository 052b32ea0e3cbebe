"""`python -m orchestrator`: the same program as `gavel`."""

import sys

from orchestrator.cli import main

if __name__ == "__main__":
    sys.exit(main())
