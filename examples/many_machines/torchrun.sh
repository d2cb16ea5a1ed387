#!/usr/bin/env bash
# Fields on all GPUs of some machines, started by torchrun. Run this on each machine, with the number of machines, this
# machine's number from 0 on, and the first machine's address; what follows goes to generate_fields.py:
#
#     examples/many_machines/torchrun.sh 2 0 node-0 --image_path out/NAME --temp_dir shards_0 ...
#
# torchrun tells each process which of how many it is. `--shard` makes from that the process's share of the shards, and
# chooses its GPU. The processes say nothing to one another. If one fails, torchrun ends the others of its machine. Then
# run the same command again: shards that are there are kept.
set -euo pipefail

machines=$1
machine=$2
first=$3
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
((gpus)) || { echo "torchrun.sh: no GPU is here" >&2 && exit 2; }

exec torchrun --nnodes="$machines" --node-rank="$machine" --master-addr="$first" --master-port="${MASTER_PORT:-29500}" \
    --nproc-per-node="$gpus" generate_fields.py "${@:4}" --shard --quiet
