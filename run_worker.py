"""Work off a queue of shards that make_dataset.py or generate_fields.py has filled with --queue.

    python run_worker.py --queue fq:///shared/queue --parallel 16 --exit_when_empty
    python run_worker.py --queue sqs://my-queue --gpu 0,1

Run it on as many machines as there are, all of which see the queue and the paths of the job. It may be ended and killed
at any time: its units come back. A unit that fails three times is set aside; --failed lists those. For more about a
queue, use the command ptq of the package task-queue: ptq status, ptq release, ptq purge.
"""

import argparse

from curation import cli


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--queue", required=True, metavar="URL", help="fq://FOLDER or sqs://NAME")
    made.add_argument("--gpu", type=cli.numbers, help="GPUs to use, one process each, such as 0,1,2,3 (all)")
    made.add_argument("--parallel", type=cli.positive, help="run on the CPU, in so many processes (all CPUs)")
    made.add_argument(
        "--lease",
        metavar="SECONDS",
        type=cli.lease,
        default=300,
        help="after so long without news of a worker, others get its units (300)",
    )
    made.add_argument("--exit_when_empty", action="store_true", help="end when no unit is left (wait for more)")
    made.add_argument("--failed", action="store_true", help="only list the units that were set aside, and why")
    cli.add_quiet(made)
    return made


def main(args: argparse.Namespace) -> None:
    from curation.steps.run_worker import RunWorkerOptions, run_worker, set_aside

    if args.failed:
        print(set_aside(args.queue))
        return
    print(
        run_worker(
            RunWorkerOptions(
                queue=args.queue,
                gpu=args.gpu,
                parallel=args.parallel,
                lease=args.lease,
                exit_when_empty=args.exit_when_empty,
            )
        )
    )


if __name__ == "__main__":
    cli.run(parser(), main)
