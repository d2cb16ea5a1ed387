r"""Run one aligner module of a pyramid over a dataset: a field for every pair, in shards.

    python generate_fields.py --pyramid_path ./pyramid --image_path x0_y0_z0_MIP6.h5 --prev_field_path field_0.h5 \
        --temp_dir ./shards --stage 1 --checkpoint_name test --src_mip 6 --dst_mip 4 --gpu 0,1,2,3

One process a GPU (all there are, unless --gpu names some), or --cpu_workers processes on the CPU. Shards that are
there are kept: the same command again does what is left. Join them with concat_fields.py.
"""

import argparse

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--pyramid_path", required=True, help="folder of <STAGE>_mip<IN_MIP>in_<SUFFIX> modules")
    made.add_argument("--image_path", required=True, help="image file or folder of its shards, at src_mip")
    made.add_argument(
        "--prev_field_path",
        help="fields of the stage before, at src_mip: file or folder of shards; stage 0 may have none",
    )
    made.add_argument(
        "--missing_prior", choices=("stop", "zero"), default="stop", help="of pairs without a previous field (stop)"
    )
    made.add_argument("--temp_dir", required=True, help="folder for the shards; made if missing")
    made.add_argument("--stage", required=True, type=cli.level, help="which module of the pyramid")
    made.add_argument(
        "--checkpoint_name", required=True, help="of the module: its .pt, .pt2 or .onnx, or what create() is told"
    )
    made.add_argument("--src_mip", required=True, type=cli.level, help="MIP of the images and the previous fields")
    made.add_argument("--dst_mip", required=True, type=cli.level, help="MIP of the fields to write")
    made.add_argument("--gpu", type=cli.numbers, help="GPUs to use, such as 0,1,2,3 (all)")
    made.add_argument("--cpu_workers", type=cli.positive, help="run on the CPU, in so many processes (all CPUs)")
    made.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number type in which the module computes, as far as it can (float32)",
    )
    made.add_argument("--tile", type=cli.positive, help="run larger images in tiles of TILE x TILE pixels (whole)")
    made.add_argument(
        "--overlap",
        type=cli.level,
        help="pixels that the module sees around each part of a tile that counts (TILE / 8)",
    )
    made.add_argument("--model_params", type=cli.json_object, default={}, help="JSON object for the module's create()")
    made.add_argument("--crop", choices=("start", "center"), default="start", help="what coarse and fine boxes share")
    made.add_argument(
        "--field_decimals",
        type=cli.decimals,
        default="binary",
        help="round fields to N decimals, to 1/256 pixel (binary), or not at all (none) (binary)",
    )
    made.add_argument(
        "--failed",
        choices=("stop", "nan", "prior"),
        default="stop",
        help="field of a pair on which the module fails; stop: none, and the run fails (stop)",
    )
    made.add_argument("--max_failures", type=cli.positive, default=10, help="stop after so many such pairs (10)")
    made.add_argument("--update", action="store_true", help="replace shards of other inputs; keep what is still right")
    made.add_argument("--dry_run", action="store_true", help="only check, and print what would be done")
    cli.add_parts(made)
    cli.add_quiet(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.field_work import GenerateFieldsOptions
    from curation.steps.generate_fields import generate_fields

    made = generate_fields(
        GenerateFieldsOptions(
            pyramid_path=args.pyramid_path,
            image_path=args.image_path,
            prev_field_path=args.prev_field_path,
            temp_dir=args.temp_dir,
            stage=args.stage,
            checkpoint_name=args.checkpoint_name,
            src_mip=args.src_mip,
            dst_mip=args.dst_mip,
            gpu=args.gpu,
            cpu_workers=args.cpu_workers,
            precision=args.precision,
            tile=args.tile,
            overlap=args.overlap,
            model_params=args.model_params,
            crop=args.crop,
            decimals=args.field_decimals,
            missing_prior=args.missing_prior,
            failed=args.failed,
            max_failures=args.max_failures,
            debug=args.debug,
            update=args.update,
            dry_run=args.dry_run,
            task=args.shard,
            queue=args.queue,
            status=args.status,
        )
    )
    print(made)


if __name__ == "__main__":
    cli.run(parser(), main)
