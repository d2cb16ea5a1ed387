r"""From annotations made in Neuroglancer to a spec of source and target boxes.

    python create_spec.py --src_spec_path ./spec_template.json --dst_spec_path spec.json \
        --points_path points.csv --offsets -1 -2 -3 --permute_pairs
    python create_spec.py --src_spec_path spec.json --check

Annotations are read from a CSV, a saved viewer state, a Neuroglancer link, or a precomputed annotation layer. A point
is the start of a box in its section; each offset pairs it with the same box in another section. A line is a pair; a
bounding box is tiled by boxes. The pairs are appended to those that the source spec already has.
"""

import argparse

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--src_spec_path", required=True, help="the spec to start from: spec_template.json, filled in")
    made.add_argument("--dst_spec_path", help="the spec to write")
    made.add_argument("--points_path", help="a CSV, a viewer state, a link, or an annotation layer's cloud path")
    made.add_argument("--offsets", nargs="*", type=int, default=[], help="sections from source to target: -1 -2")
    made.add_argument("--permute_pairs", action="store_true", help="also pair target with source, in that order")
    made.add_argument("--layer", help="the state's annotation layer, where several hold annotations")
    made.add_argument("--anchor", choices=("start", "center"), default="start", help="what a point is of its box")
    made.add_argument("--stride", type=cli.positive, help="pixels at dst_mip between tiles of a bounding box (a tile)")
    for name, text in [
        ("--points_resolution", "nm per unit of the points, where they do not say it"),
        ("--volume_resolution", "nm per voxel of the image at MIP 0, where it cannot be read"),
    ]:
        made.add_argument(name, nargs=3, type=cli.width, metavar=("X", "Y", "Z"), help=text)
    made.add_argument("--exclude", metavar="FILE", help="leave out the pairs of this JSON file, and their reverses")
    made.add_argument("--exclude_boxes", metavar="FILE", help="leave out pairs that share a box with one of this file")
    made.add_argument("--max_pairs", type=cli.positive, help="of the new pairs, a random subset of so many at most")
    made.add_argument("--seed", type=cli.level, default=0, help="of that subset (0)")
    made.add_argument(
        "--neuroglancer_link",
        metavar="FILE",
        help="write a link to see the pairs; if .json, a state",
    )
    made.add_argument("--check", action="store_true", help="only check the source spec and its volumes, and show them")
    cli.add_existing(made)
    return made


def main(args: argparse.Namespace) -> None:
    if args.check:
        from curation.steps.check_spec import CheckSpecOptions, check_spec

        contents = check_spec(
            CheckSpecOptions(
                path=args.src_spec_path,
                link_path=args.neuroglancer_link,
                volume_resolution=cli.triple(args.volume_resolution),
                existing=cli.existing(args),
            )
        )
        print(contents)
        if contents.fault is not None:
            raise contents.fault
        return
    from curation.steps.create_spec import CreateSpecOptions, create_spec

    cli.check_given(args, "dst_spec_path", "points_path")
    made = create_spec(
        CreateSpecOptions(
            src_spec_path=args.src_spec_path,
            dst_spec_path=args.dst_spec_path,
            points_path=args.points_path,
            offsets=tuple(args.offsets),
            permute=args.permute_pairs,
            layer=args.layer,
            anchor=args.anchor,
            stride=args.stride,
            points_resolution=cli.triple(args.points_resolution),
            volume_resolution=cli.triple(args.volume_resolution),
            exclude_path=args.exclude,
            exclude_boxes_path=args.exclude_boxes,
            max_pairs=args.max_pairs,
            seed=args.seed,
            link_path=args.neuroglancer_link,
            existing=cli.existing(args),
        )
    )
    print(made)


if __name__ == "__main__":
    cli.run(parser(), main)
