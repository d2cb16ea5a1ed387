"""Read dataset files back, and hold them against what they promise.

    python verify_dataset.py dataset/*.h5
    python verify_dataset.py shards

Every chunk is read; checked are each image's and field's CRC-32, the facts stored with them, their ranges, the hash of
the spec, and the seal, which covers whatever else a reader can see. Fields of older tools (LZF and scaleoffset) are
searched for NaN that became numbers. Of a folder, every shard is read, and it must hold all pairs. A line a fault on
stdout; exit code 0 if there is none, else 1.
"""

import argparse
import sys

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__, resumes=False)
    made.add_argument("path", nargs="+", metavar="FILE", help="image or field files, or folders of shards")
    cli.add_quiet(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.progress import say
    from curation.steps.verify_dataset import faults

    found = False
    for path in args.path:
        for fault in faults(path):
            found = True
            say(fault)
    if found:
        sys.exit(cli.WORK_FAILED)


if __name__ == "__main__":
    cli.run(parser(), main)
