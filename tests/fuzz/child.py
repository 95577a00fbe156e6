# SPDX-License-Identifier: GPL-2.0-or-later
"""One target under atheris, in a process of its own: python -m fuzz.child TARGET [libFuzzer's].

Only xenpt is instrumented: what guides the fuzzer is which of its branches an input reaches.
"""

import random
import sys

import atheris

with atheris.instrument_imports(include=["xenpt"]):
    from fuzz.bounds import bounded
    from fuzz.mutate import mutate_text
    from fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough, or there is a crash."""
    name, *options = sys.argv[1:]
    run, is_text = TARGETS[name].run, TARGETS[name].is_text

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if is_text and chance.random() < 0.5:
            return mutate_text(data, most_bytes, chance)
        return bytes(atheris.Mutate(data, most_bytes))

    def once(data: bytes) -> None:
        with bounded():
            run(data)

    atheris.Setup([sys.argv[0], *options], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
