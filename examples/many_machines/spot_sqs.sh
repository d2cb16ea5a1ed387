#!/usr/bin/env bash
# A fleet of machines that may be taken away at any time, with a queue at Amazon SQS and shards in S3.
#
#     examples/many_machines/spot_sqs.sh fill pairs --spec_path spec.json --dst_path s3://BUCKET/dataset   # once
#     examples/many_machines/spot_sqs.sh work pairs                                                 # on each machine
#     examples/many_machines/spot_sqs.sh end pairs                                          # when the queue is empty
#
# `fill` makes the queue, and puts into it what is not there yet of the dataset. Run it again with the same words to put
# in again what was lost. `work` is what each machine runs as it starts, as the user data of its launch template say. It
# ends when the queue is empty, so that the machine can switch itself off: `spot_sqs.sh work pairs && shutdown -h now`.
set -euo pipefail

verb=$1
name=$2
days=$((14 * 24 * 3600)) # seconds; after these, SQS forgets what nobody took. Its own value is 4 days

case $verb in
    fill)
        for queue in "$name" "$name-failed"; do # the second is for units that have failed too often
            aws sqs create-queue --queue-name "$queue" --attributes "MessageRetentionPeriod=$days"
        done
        python make_dataset.py "${@:3}" --shards --queue "sqs://$name"
        ;;
    work)
        # A machine that is taken away says nothing. The lease of its unit runs out, and another machine makes the unit.
        # A worker that fails, because the store or the queue is away for long, is started again after a while.
        until python run_worker.py --queue "sqs://$name" --exit_when_empty --quiet; do
            code=$?
            ((code == 2)) && exit 2 # the input is wrong, and would be wrong again
            sleep 60
        done
        ;;
    end)
        python run_worker.py --queue "sqs://$name" --failed
        for queue in "$name" "$name-failed"; do
            aws sqs delete-queue --queue-url "$(aws sqs get-queue-url --queue-name "$queue" --query QueueUrl --output text)"
        done
        ;;
    *)
        echo "spot_sqs.sh: $verb is none of fill, work and end" >&2
        exit 2
        ;;
esac
