"""From a spec to a dataset: images, masked and normalised, and the fields that nearly align them.

    python make_dataset.py --spec_path spec.json --dst_path ./dataset --parallel 4

Writes x{X}_y{Y}_z{Z}_MIP{M}.h5 and, if the spec has a field, field_0_x{X}_y{Y}_z{Z}_MIP{M}.h5 into the folder. With
a cloud path (gs://..., s3://..., file://...) it writes the images, warped, as sections of a CloudVolume layer.

    python make_dataset.py --spec_path spec.json --dst_path ./dataset --shards

With --shards it writes folders of shards of those names instead of files, which many processes, on many machines, can
do a part of each: the tasks of a job array (--shard), or the workers of a queue (--queue, and run_worker.py).
"""

import argparse

from curation import cli
from curation.array_task import local_share
from curation.datasets.shards import SHARD_PAIRS
from curation.machine import usable_cores


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--spec_path", required=True, help="the spec, from create_spec.py")
    made.add_argument("--dst_path", required=True, help="a folder, made if only it is missing, or a layer's cloud path")
    made.add_argument("--name", help="of the files, without .h5 (after the first pair: x{X}_y{Y}_z{Z}_MIP{M})")
    cores = max(1, usable_cores() // local_share()[1])
    made.add_argument("--parallel", type=cli.positive, default=cores, help="worker processes (all CPUs)")
    made.add_argument("--suffix", help="a tag before .h5 in the field file's name, such as a checkpoint's")
    made.add_argument(
        "--field_decimals",
        type=cli.decimals,
        default="binary",
        help="round fields to N decimals, to 1/256 pixel (binary), or not at all (none) (binary)",
    )
    made.add_argument(
        "--image_step",
        metavar="S",
        type=cli.step,
        help="round warped targets to multiples of S deviations, such as 1/2048 (not rounded)",
    )
    made.add_argument("--missing", choices=("black", "fail"), help="a chunk that is not there (black)")
    made.add_argument(
        "--retry_for", type=cli.seconds, default=600, help="seconds to wait for a store that is away (600)"
    )
    made.add_argument("--min_valid", type=cli.fraction, help="leave out pairs with less valid area in either image")
    made.add_argument(
        "--exclude",
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="leave out the pairs of these JSON files, and their reverses",
    )
    made.add_argument(
        "--shards",
        metavar="PAIRS",
        type=cli.positive,
        nargs="?",
        const=0,
        help=f"write folders of shards of so many pairs each ({SHARD_PAIRS}), instead of files",
    )
    cli.add_parts(made)
    made.add_argument("--quality", action="store_true", help="measure each pair, and put the numbers in the field file")
    made.add_argument("--dry_run", action="store_true", help="only check, and print what would be done")
    cli.add_existing(made)
    cli.add_quiet(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.make_dataset import MakeDatasetOptions, make_dataset

    made = make_dataset(
        MakeDatasetOptions(
            spec_path=args.spec_path,
            dst_path=args.dst_path,
            parallel=args.parallel,
            name=args.name,
            suffix=args.suffix,
            decimals=args.field_decimals,
            image_step=args.image_step,
            missing=args.missing,
            retry_for=args.retry_for,
            min_valid=args.min_valid,
            quality=args.quality,
            exclude=tuple(args.exclude),
            dry_run=args.dry_run,
            shard_pairs=args.shards,
            task=args.shard,
            queue=args.queue,
            status=args.status,
            existing=cli.existing(args),
        )
    )
    print(made)


if __name__ == "__main__":
    cli.run(parser(), main)
