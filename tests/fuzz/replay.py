# SPDX-License-Identifier: GPL-2.0-or-later
"""One target on the files of a folder, without a fuzzer: python -m fuzz.replay TARGET FOLDER.

How much memory reading takes is seen here: atheris keeps some of each run.
"""

import sys
from pathlib import Path

from fuzz.bounds import bounded
from fuzz.targets import TARGETS


def main() -> None:
    """Run the target on each file."""
    name, folder = sys.argv[1:]
    for path in sorted(Path(folder).iterdir()):
        with bounded():
            TARGETS[name].run(path.read_bytes())


if __name__ == "__main__":
    main()
