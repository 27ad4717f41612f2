"""python -m tests.fuzz [--seed N] [--cases N] [--kinds adapter pth …] [--only NUMBER]

Reads damaged and odd inputs of every kind, and prints a table of how that ended. Exit status 1 if
any left a traceback, took too long, was accepted though it is damaged, or was told in a line that
is too long or that writes to the terminal; each of these is printed with the command that repeats
it.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import math  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

from tests.fuzz.kinds import NAMES, SHARES, kind  # noqa: E402
from tests.fuzz.runner import Tally, run, table  # noqa: E402

# An input that asks for more than this is one that takes a machine down.
_MAX_MEMORY = 8 * 2**30  # bytes, of addresses beside those of the libraries


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is other cases")
    parser.add_argument("--cases", type=int, default=5000, help="over all kinds. Default: 5000")
    with_torch = importlib.util.find_spec("torch") is not None
    known = [name for name in NAMES if with_torch or name != "pth"]
    parser.add_argument(
        "--kinds", nargs="+", choices=known, default=known, help="pth where there is PyTorch"
    )
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this case of each kind alone")
    args = parser.parse_args()

    began, computed = time.monotonic(), time.process_time()
    tallies: list[Tally] = []
    shares = sum(SHARES[name] for name in args.kinds)
    for name in args.kinds:
        count = math.ceil(args.cases * SHARES[name] / shares)
        numbers = range(count) if args.only is None else [args.only]
        tallies.append(run(kind(name), args.seed, numbers, limit=limited))
        last = tallies[-1]
        print(f"{name}: {last.cases} cases, {last.seconds:.1f} s", file=sys.stderr, flush=True)
    for tally in tallies:
        for failure in tally.failures:
            print(failure)
    print(table(tallies))
    print(
        f"seed {args.seed}: {sum(tally.cases for tally in tallies)} cases, "
        f"{time.monotonic() - began:.0f} s, {time.process_time() - computed:.0f} s of CPU"
    )
    return int(any(tally.failures for tally in tallies))


def limited() -> None:
    """Keeps what the cases allocate within bounds; called when all that they need is loaded."""
    pages = int(open("/proc/self/statm").read().split()[0])
    held = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _MAX_MEMORY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.exit(main())
