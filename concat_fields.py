"""Join the shards that generate_fields.py wrote into one field file.

    python concat_fields.py --temp_dir ./shards --dst_path field_1.h5

Every pair must be there exactly once. Stored bytes are copied as they are, so values are those of the shards.
"""

import argparse

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--temp_dir", required=True, help="the folder of shards")
    made.add_argument("--dst_path", required=True, help="the field file to write")
    cli.add_existing(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.concat_fields import concat_fields

    print(concat_fields(args.temp_dir, args.dst_path, cli.existing(args)))


if __name__ == "__main__":
    cli.run(parser(), main)
