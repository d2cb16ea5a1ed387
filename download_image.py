r"""A contiguous stretch of a volume: every section paired with the one before it, as stored.

    python download_image.py --cv_path gs://bucket/image --dst_folder ./stretch --z_start 8175 --z_end 8180 \
        --x_offset 200960 --y_offset 136448 --mip 3 5 --patch_size 1536 1536

Writes x{X}_y{Y}_z{Z}_MIP{M}.h5 for each MIP. Offsets are MIP-0 voxels, patch sizes pixels at their MIP.
"""

import argparse

from curation import cli
from curation.machine import usable_cores


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--cv_path", required=True, help="the volume")
    made.add_argument("--dst_folder", required=True, help="a folder, made if only it is missing")
    made.add_argument("--z_start", required=True, type=int, help="first section that is a source")
    made.add_argument("--z_end", required=True, type=int, help="the section after the last")
    made.add_argument("--x_offset", required=True, type=int, help="start in MIP-0 voxels, a multiple of 2^MIP")
    made.add_argument("--y_offset", required=True, type=int, help="start in MIP-0 voxels, a multiple of 2^MIP")
    made.add_argument("--mips", "--mip", required=True, nargs="+", type=cli.level, help="levels, a file each")
    made.add_argument(
        "--patch_sizes", "--patch_size", required=True, nargs="+", type=cli.positive, help="pixels, one a MIP"
    )
    made.add_argument("--cv_path_defects", help="a volume of defects, read at the same MIPs")
    made.add_argument("--mask_val", type=cli.threshold, help="pixels whose defect value is at least this become 0")
    made.add_argument("--parallel", type=cli.positive, default=usable_cores(), help="worker processes (all CPUs)")
    made.add_argument("--missing", choices=("black", "fail"), help="a chunk that is not there (black)")
    made.add_argument(
        "--retry_for", type=cli.seconds, default=600, help="seconds to wait for a store that is away (600)"
    )
    made.add_argument("--dry_run", action="store_true", help="only check, and print what would be done")
    cli.add_existing(made)
    cli.add_quiet(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.download_image import DownloadImageOptions, download_image

    made = download_image(
        DownloadImageOptions(
            cv_path=args.cv_path,
            dst_folder=args.dst_folder,
            z_start=args.z_start,
            z_end=args.z_end,
            x_offset=args.x_offset,
            y_offset=args.y_offset,
            mips=tuple(args.mips),
            patch_sizes=tuple(args.patch_sizes),
            cv_path_defects=args.cv_path_defects,
            mask_val=args.mask_val,
            parallel=args.parallel,
            missing=args.missing,
            retry_for=args.retry_for,
            dry_run=args.dry_run,
            existing=cli.existing(args),
        )
    )
    print(made)


if __name__ == "__main__":
    cli.run(parser(), main)
