#!/usr/bin/env bash
# Fields on all GPUs of some machines, started by torchrun. Run this on each machine, with the number of machines, this
# machine's number from 0 on, and the first machine's address; what follows goes to generate_fields.py:
#
#     examples/many_machines/torchrun.sh 2 0 node-0 --image_path out/NAME --temp_dir shards_0 ...
#
# torchrun gives each process its RANK and WORLD_SIZE, from which `--shard` takes the process's share of the shards. The
# processes say nothing to one another, and each may end when it likes.
set -euo pipefail

machines=$1
machine=$2
first=$3
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')

# All processes see all GPUs, so each is told which one is its own.
# shellcheck disable=SC2016  # LOCAL_RANK is torchrun's, and is filled in by each process
run='exec python generate_fields.py "$@" --gpu "$LOCAL_RANK" --shard --quiet'

# --no-python: what is run is a shell, and not a Python file. If a process fails, torchrun ends the others of the machine.
# Then the same command goes on: shards that are there are kept.
exec torchrun --nnodes="$machines" --node-rank="$machine" --master-addr="$first" --master-port="${MASTER_PORT:-29500}" \
    --nproc-per-node="$gpus" --no-python bash -c "$run" generate_fields "${@:4}"
