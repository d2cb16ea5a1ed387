"""Divide the pairs of a dataset into parts that share no tissue, such as training, validation and test.

    python split_pairs.py --image_path image.h5 --dst_path split.json --fractions 0.8 0.1 0.1 --by section

By section, each part gets a range of sections. By block, it gets a part of the volume in x and y, through all sections.
Pairs at the borders are left out. By point, pairs whose boxes overlap stay together, and no pair is left out.
"""

import argparse

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    either = made.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--image_path", nargs="+", metavar="FILE", help="image files or folders of shards, of one volume"
    )
    either.add_argument("--spec_path", metavar="FILE", help="a spec without a field, instead of image files")
    made.add_argument("--dst_path", required=True, help="the split to write, JSON")
    made.add_argument(
        "--fractions", required=True, nargs="+", type=cli.fraction, metavar="F", help="of the pairs: 0.8 0.1 0.1"
    )
    made.add_argument("--names", nargs="+", metavar="NAME", help="of the parts (train validation test)")
    made.add_argument("--by", required=True, choices=("section", "block", "point"), help="how the pairs are divided")
    made.add_argument(
        "--gap", type=cli.level, default=1, help="sections so far apart at most count as the same tissue (1)"
    )
    made.add_argument("--seed", type=cli.level, default=0, help="of the choice which part gets what (0)")
    made.add_argument(
        "--field_path",
        nargs="+",
        default=[],
        metavar="FILE",
        help="show the medians of the numbers of these fields (files or folders)",
    )
    cli.add_existing(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.split_pairs import SplitOptions, split_pairs

    made = split_pairs(
        SplitOptions(
            image_paths=tuple(args.image_path or ()),
            spec_path=args.spec_path,
            dst_path=args.dst_path,
            fractions=tuple(args.fractions),
            names=None if args.names is None else tuple(args.names),
            by=args.by,
            gap=args.gap,
            seed=args.seed,
            field_paths=tuple(args.field_path),
            existing=cli.existing(args),
        )
    )
    print(made)


if __name__ == "__main__":
    cli.run(parser(), main)
