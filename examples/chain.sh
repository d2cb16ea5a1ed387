#!/usr/bin/env bash
# From points to the fields of every stage, as one command that may be run again at any time: after a crash, a new point
# or a changed option. What is still right is kept, and only the rest is made.
#
#     examples/chain.sh walk/sample walk/chain
#
# The first folder holds points.csv and a spec template for each level, such as coarse.json; the results go to the second.
# Whatever follows are JSON files of pairs to leave out, such as those that somebody has rejected after looking at them.
# Copy this script for a dataset of your own, and change the settings below.
set -euo pipefail

data=$1
out=$2
exclude=(${3:+--exclude "${@:3}"})

pyramid=examples/pyramid
checkpoint=none
offsets=(-1 -2)

# One line a stage: its number, the level whose images it runs on, their MIP, and the MIP of the fields it makes.
stages=(
    "0 coarse 3 2"
    "1 fine 2 2"
)

mkdir -p "$out"
prior=
for stage in "${stages[@]}"; do
    read -r number level src_mip dst_mip <<<"$stage"

    python create_spec.py --src_spec_path "$data/$level.json" --dst_spec_path "$out/$level.json" \
        --points_path "$data/points.csv" --offsets "${offsets[@]}" --permute_pairs --update
    python make_dataset.py --spec_path "$out/$level.json" --dst_path "$out" --name "$level" \
        "${exclude[@]}" --update

    # The first stage starts from the dataset's own fields, and each later one from the fields of the stage before.
    python generate_fields.py --pyramid_path "$pyramid" --image_path "$out/$level.h5" \
        --prev_field_path "${prior:-$out/field_0_$level.h5}" --temp_dir "$out/shards_$number" \
        --stage "$number" --checkpoint_name "$checkpoint" --src_mip "$src_mip" --dst_mip "$dst_mip" --update
    prior=$out/field_$((number + 1)).h5
    python concat_fields.py --temp_dir "$out/shards_$number" --dst_path "$prior" --update
done

python verify_dataset.py "$out"/*.h5
