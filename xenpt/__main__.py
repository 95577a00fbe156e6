# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m xenpt`: the command line."""

import sys

from xenpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
