"""Join shards of images or of fields into one file, or finished files into one.

    python concat_fields.py --temp_dir ./shards --dst_path field_1.h5
    python concat_fields.py --files cortex/image.h5 hippocampus/image.h5 --dst_path image.h5

Of shards, every pair must be there exactly once. Finished files are image files, or field files, of the same shape, MIP
and options, or folders with all of their shards; a pair that an earlier file holds too is left out. Stored bytes are
copied, so values stay as they are.
"""

import argparse

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--temp_dir", help="the folder of shards, or its cloud path")
    what.add_argument("--files", nargs="+", metavar="FILE", help="finished image files, or field files, or folders")
    made.add_argument("--dst_path", required=True, help="the file to write")
    cli.add_existing(made)
    cli.add_quiet(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.concat_fields import concat_fields, concat_files

    if args.files:
        print(concat_files(args.files, args.dst_path, cli.existing(args)))
    else:
        print(concat_fields(args.temp_dir, args.dst_path, cli.existing(args)))


if __name__ == "__main__":
    cli.run(parser(), main)
