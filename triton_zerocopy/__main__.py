"""The command ``triton-zerocopy``, also as ``python -m triton_zerocopy``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tritonclient.utils import InferenceServerException

from ._bench.arguments import add_arguments, checked
from ._bench.command import bench
from ._bench.failures import BenchError
from ._errors import ZeroCopyError

_INTERRUPTED = 130  # as a shell tells of SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for what failed, 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="triton-zerocopy", description="Tools of triton_zerocopy, an asyncio Triton client."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bench_parser = commands.add_parser("bench", help="measure a server and a model")
    add_arguments(bench_parser)
    given = parser.parse_args(arguments)
    try:
        bench(checked(bench_parser, given))
    except (BenchError, ZeroCopyError, InferenceServerException) as error:
        print(f"{bench_parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{bench_parser.prog}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
