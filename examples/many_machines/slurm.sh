#!/usr/bin/env bash
# One step of the toolkit as an array job of SLURM. Each task of the array makes its share of the shards:
#
#     sbatch --array=0-99 examples/many_machines/slurm.sh make_dataset.py --spec_path spec.json --dst_path out --shards
#     sbatch --array=0-9 --gpus-per-task=1 examples/many_machines/slurm.sh generate_fields.py ... --temp_dir shards_0
#
# Submit it in the folder of the scripts, with the environment active: SLURM hands both on to the tasks. What follows the
# script's name goes to it as it is. Submit the same line again after a failure: shards that are there are kept.
#
#SBATCH --job-name=pairs
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=1G
#SBATCH --time=04:00:00
# A task whose machine fails or is needed by others starts again, with the same number, and goes on where it was.
#SBATCH --requeue
# Each task has a log of its own, and the second start of a task writes behind the first.
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
set -euo pipefail

# Not every cluster binds tasks to their cores, so say how many there are.
cores=${SLURM_CPUS_PER_TASK:-1}
case $1 in
    make_dataset.py) workers=(--parallel "$cores") ;;
    *) workers=() ;;
esac
export OMP_NUM_THREADS=$cores

# `exec`, so that what SLURM sends to the task reaches the script. Without a value, `--shard` reads the task's number and
# the size of the array from SLURM's variables. So do not submit a part of an array, such as --array=7, without a value.
exec python "$@" "${workers[@]}" --shard --quiet
