"""Random replies through the parsers of all formats: `make fuzz`, or

python tests/support/fuzz.py [--cases 1000000] [--seed 0]

A case that fails is printed with what makes it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from fuzzing import check, random_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, started = Random(args.seed), time.monotonic()
    for number in range(1, args.cases + 1):
        case = random_case(rng)
        try:
            check(case)
        except Exception:
            print(f"case {number} of seed {args.seed}: {case.format.name}, {case}", file=sys.stderr)
            raise
        if number % 100_000 == 0:
            print(f"{number:,} cases, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{args.cases:,} cases passed")


if __name__ == "__main__":
    main()
