# SPDX-License-Identifier: GPL-2.0-or-later
"""One target on the files of a folder, without a fuzzer: python -m fuzz.replay TARGET FOLDER.

Prints its peak RSS in bytes. What reading takes is seen here: atheris keeps some of each run.
"""

import re
import sys
from pathlib import Path

from fuzz.bounds import bounded
from fuzz.targets import TARGETS


def main() -> None:
    """Run the target on each file; VmHWM is of this program alone, ru_maxrss of its parent, too."""
    name, folder = sys.argv[1:]
    for path in sorted(Path(folder).iterdir()):
        with bounded():
            TARGETS[name].run(path.read_bytes())
    [kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    sys.stdout.write(f"{int(kib) << 10}\n")


if __name__ == "__main__":
    main()
