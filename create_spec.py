"""From points picked in Neuroglancer to a spec of source and target boxes.

    python create_spec.py --src_spec_path ./spec_template.json --dst_spec_path spec.json \
        --points_path points.csv --offsets -1 -2 -3 --permute_pairs

Each point is the start of a box in its section; each offset pairs it with the same box in another section.
The pairs are appended to those that the source spec already has.
"""

import argparse

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--src_spec_path", required=True, help="the spec to start from: spec_template.json, filled in")
    made.add_argument("--dst_spec_path", required=True, help="the spec to write")
    made.add_argument("--points_path", required=True, help="CSV of points, in MIP-0 voxels")
    made.add_argument("--offsets", required=True, nargs="*", type=int, help="sections from source to target: -1 -2")
    made.add_argument("--permute_pairs", action="store_true", help="also pair target with source, in that order")
    made.add_argument("--overwrite", action="store_true", help="replace the destination if it is there")
    return made


def main(args: argparse.Namespace) -> None:
    from curation.pairs import append_pairs

    made = append_pairs(
        args.src_spec_path,
        args.dst_spec_path,
        args.points_path,
        offsets=args.offsets,
        permute=args.permute_pairs,
        overwrite=args.overwrite,
    )
    print(made)


if __name__ == "__main__":
    cli.run(parser(), main)
