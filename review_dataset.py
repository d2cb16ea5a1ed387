"""See what you curated: a page of all pairs, a contact sheet, a table, or a summary in the terminal.

    python review_dataset.py --image_path image.h5 --field_path field_0.h5 field_1.h5 --dst_path ./review
    python review_dataset.py --image_path image.h5 --field_path field_1.h5 --sheet sheet.png

The page is a folder that any browser opens without a server. It shows each pair before and after each field, worst
first, and saves the pairs that you reject for --exclude of make_dataset.py and create_spec.py. Files of older tools,
folders of shards and files that are still being written are looked at too, as far as they are there.
"""

import argparse

from curation import cli
from curation.machine import usable_cores


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__, resumes=False)
    made.add_argument("--image_path", required=True, help="image file, or a folder of shards")
    made.add_argument(
        "--field_path", nargs="+", default=[], metavar="FILE", help="field files, or folders of shards, stage by stage"
    )
    made.add_argument("--dst_path", help="folder of the page, made if only it is missing (none: print the summary)")
    made.add_argument(
        "--size", type=cli.picture_side, default=1024, help="longest side of the page's pictures, px (1024)"
    )
    made.add_argument("--quality", type=cli.jpeg_quality, default=60, help="of the page's pictures, JPEG, 1 to 95 (60)")
    made.add_argument("--csv", metavar="FILE", help="write a table with a row for each pair")
    made.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet")
    made.add_argument("--sheet_rows", type=cli.sheet_rows, default=8, help="pairs on the sheet (8)")
    made.add_argument(
        "--sheet_order", choices=("worst", "best", "spread"), default="worst", help="which pairs it shows (worst)"
    )
    made.add_argument("--parallel", type=cli.positive, default=usable_cores(), help="worker processes (all CPUs)")
    made.add_argument("--overwrite", action="store_true", help="replace a review that is there")
    cli.add_quiet(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.review_dataset import ReviewOptions, review_dataset

    made = review_dataset(
        ReviewOptions(
            image_path=args.image_path,
            field_paths=tuple(args.field_path),
            dst_path=args.dst_path,
            size=args.size,
            quality=args.quality,
            csv=args.csv,
            sheet=args.sheet,
            rows=args.sheet_rows,
            order=args.sheet_order,
            parallel=args.parallel,
            overwrite=args.overwrite,
        )
    )
    print(made)


if __name__ == "__main__":
    cli.run(parser(), main)
