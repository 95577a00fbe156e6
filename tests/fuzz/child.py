# SPDX-License-Identifier: GPL-2.0-or-later
"""One target under atheris, in a process of its own: python -m fuzz.child TARGET [libFuzzer's].

Only xenpt is instrumented: what guides the fuzzer is which of its branches an input reaches.
"""

import sys

import atheris

with atheris.instrument_imports(include=["xenpt"]):
    from fuzz.bounds import bounded
    from fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough, or there is a crash."""
    name, *options = sys.argv[1:]
    run = TARGETS[name].run

    def once(data: bytes) -> None:
        with bounded():
            run(data)

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
