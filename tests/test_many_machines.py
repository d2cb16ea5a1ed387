"""examples/many_machines/: scripts that start what they say, a Job that Kubernetes would take, and the simulation."""

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from commands import ROOT
from test_amazon import BUCKET, amazon, client, stored
from test_box_shards import arguments, hashes, made, spec

__all__ = ["amazon", "made", "spec"]

EXAMPLES = ROOT / "examples" / "many_machines"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))

# Stands in for a command: it writes down its name, what it is told and some variables, a line for each call.
TOLD = """#!/bin/bash
echo "$(basename "$0") $* rank=$RANK/$WORLD_SIZE threads=$OMP_NUM_THREADS" >>"$CALLS"
"""


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulate", EXAMPLES / "simulate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module  # where dataclasses look for the module of their annotations
    spec.loader.exec_module(module)
    return module


simulation: Any = loaded()
Options = simulation.Options


# Scripts

# Stands in for Amazon's own command.
AWS = f"""#!{sys.executable}
import sys
import boto3

_, _, verb, _, name, *rest = sys.argv
sqs = boto3.client("sqs")
if verb == "create-queue":
    sqs.create_queue(QueueName=name, Attributes=dict([rest[1].split("=")]))
elif verb == "get-queue-url":
    print(sqs.get_queue_url(QueueName=name)["QueueUrl"])
elif verb == "delete-queue":
    sqs.delete_queue(QueueUrl=name)
"""


class Stage:
    """A folder in which commands are replaced by stand-ins that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()

    def put(self, name: str, text: str = TOLD) -> None:
        command = self.folder / "bin" / name
        command.write_text(text)
        command.chmod(0o755)

    def run(self, script: str, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
        environment = {"PATH": path, "CALLS": str(self.folder / "calls"), "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(
            ["bash", EXAMPLES / script, *map(str, arguments)],
            env={**environment, **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.put("python")
    return made


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_written_right(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=True).stderr == ""
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize(
    ("command", "workers"), [("make_dataset.py --shards", " --parallel 4"), ("generate_fields.py --stage 0", "")]
)
def test_a_task_of_slurm_makes_its_share_on_its_cores(stage: Stage, command: str, workers: str) -> None:
    assert stage.run("slurm.sh", *command.split(), SLURM_CPUS_PER_TASK="4").returncode == 0
    assert stage.calls() == [f"python {command}{workers} --shard --quiet rank=/ threads=4"]


def test_slurm_reads_its_options_before_the_first_command() -> None:
    """SLURM ignores #SBATCH lines behind the first line that is no comment."""
    lines = (EXAMPLES / "slurm.sh").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert len(options) == 7
    assert max(options) < first


def test_torchrun_starts_a_process_for_each_gpu_of_each_machine(stage: Stage) -> None:
    stage.put("python", "#!/bin/bash\necho 2\n")  # GPUs
    stage.put("torchrun")
    assert stage.run("torchrun.sh", 3, 1, "node-0", "--image_path", "a.h5").returncode == 0
    (call,) = stage.calls()
    assert call.startswith("torchrun --nnodes=3 --node-rank=1 --master-addr=node-0 ")
    assert " --nproc-per-node=2 generate_fields.py --image_path a.h5 --shard --quiet " in call


def test_a_spot_machine_goes_on_until_the_queue_is_empty(stage: Stage) -> None:
    stage.put("sleep")
    codes = stage.folder / "codes"
    codes.write_text("1\n137\n0\n")
    stage.put("python", TOLD + f"code=$(head -n 1 {codes}); sed -i 1d {codes}; exit $code\n")
    assert stage.run("spot_sqs.sh", "work", "pairs").returncode == 0
    worker = "python run_worker.py --queue sqs://pairs --exit_when_empty --quiet rank=/ threads="
    assert stage.calls() == [worker, "sleep 60 rank=/ threads=", worker, "sleep 60 rank=/ threads=", worker]


def test_a_spot_machine_does_not_try_again_what_is_wrong(stage: Stage) -> None:
    stage.put("python", TOLD + "exit 2\n")
    assert stage.run("spot_sqs.sh", "work", "pairs").returncode == 2
    assert len(stage.calls()) == 1


def test_a_fleet_has_a_queue_that_lasts_and_one_for_failures(stage: Stage) -> None:
    stage.put("aws")
    assert stage.run("spot_sqs.sh", "fill", "pairs", "--spec_path", "a.json").returncode == 0
    queue, failures, dataset = stage.calls()
    assert queue.startswith("aws sqs create-queue --queue-name pairs --attributes MessageRetentionPeriod=1209600 ")
    assert failures.startswith("aws sqs create-queue --queue-name pairs-failed ")
    assert dataset.startswith("python make_dataset.py --spec_path a.json --shards --queue sqs://pairs ")


def test_the_end_of_a_fleet_leaves_no_queue(stage: Stage) -> None:
    stage.put("aws", TOLD + 'case $2 in get-queue-url) echo "https://$4" ;; esac\n')
    assert stage.run("spot_sqs.sh", "end", "pairs").returncode == 0
    deleted = [call for call in stage.calls() if "delete-queue" in call]
    assert [call.split()[4] for call in deleted] == ["https://pairs", "https://pairs-failed"]


def test_a_fleet_makes_shards_in_a_store_from_a_queue(
    stage: Stage, amazon: Mapping[str, str], spec: Path, made: Path
) -> None:
    stage.put("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    stage.put("aws", AWS)
    variables = {name: value for name, value in amazon.items() if name.startswith("AWS_") or name == "OMP_NUM_THREADS"}
    given = arguments(spec, Path("out"))
    given[given.index(Path("out"))] = f"s3://{BUCKET}/fleet"
    filled = stage.run("spot_sqs.sh", "fill", "fleet", *given, **variables)
    assert "9 pairs" in filled.stdout, filled.stderr
    sqs = client(amazon, "sqs")
    assert len(sqs.list_queues(QueueNamePrefix="fleet")["QueueUrls"]) == 2
    assert "units done" in stage.run("spot_sqs.sh", "work", "fleet", **variables).stdout
    made_there = stored(amazon, "fleet/")
    assert {name.rpartition("/")[0] for name in made_there} == {name.rpartition("/")[0] for name in hashes(made)}
    assert {name.rpartition("/")[2] for name in made_there} == {"0_9.h5"}
    ended = stage.run("spot_sqs.sh", "end", "fleet", **variables)
    assert (ended.returncode, ended.stdout) == (0, "sqs://fleet: no unit was set aside\n")
    assert "QueueUrls" not in sqs.list_queues(QueueNamePrefix="fleet")


def test_a_verb_that_is_none_is_one_line(stage: Stage) -> None:
    done = stage.run("spot_sqs.sh", "start", "pairs")
    assert (done.returncode, done.stderr) == (2, "spot_sqs.sh: start is none of fill, work and end\n")


def test_the_job_of_kubernetes_tells_each_pod_its_number_and_how_many_there_are() -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completionMode"] == "Indexed"
    assert container["env"] == [{"name": "JOB_COMPLETIONS", "value": str(spec["completions"])}]
    assert spec["backoffLimitPerIndex"] > 0 and pod["restartPolicy"] == "Never"  # the one demands the other
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["python", "make_dataset.py"]
    assert all(isinstance(argument, str) for argument in container["args"])  # Kubernetes takes no numbers there
    assert "--shard" in container["args"]


# The simulation, against what can be reasoned out


def test_undisturbed_workers_share_the_time() -> None:
    done = simulation.simulate(Options(workers=10, units=200, unit_s=60, start_s=30))
    assert done.seconds == pytest.approx(30 + 200 / 10 * 60)
    assert done.lost == pytest.approx(30 / 1230)
    assert (done.twice, done.preempted) == (0, 0)


def test_the_last_round_may_leave_workers_idle() -> None:
    done = simulation.simulate(Options(workers=10, units=201, unit_s=60))
    assert done.seconds == pytest.approx(21 * 60)
    assert done.lost == pytest.approx(1 - 201 / 210)


def test_each_request_to_the_queue_is_counted() -> None:
    """To lease and to delete are one each, and in 61 seconds a lease of 30 is renewed after 10, 20, ... 60."""
    assert simulation.simulate(Options(units=50, unit_s=61, lease_s=30)).requests == 50 * (1 + 6 + 1)
    assert simulation.simulate(Options(units=50, unit_s=61, lease_s=600)).requests == 50 * 2


def test_a_renewed_lease_may_be_shorter_than_the_work() -> None:
    options = Options(workers=10, units=30, unit_s=1000, spread=1.0, stragglers=0.1, lease_s=3)
    assert simulation.simulate(options).twice == 0


def test_the_mean_of_the_unit_times_is_the_one_given() -> None:
    plain = simulation.simulate(Options(workers=1, units=20000, unit_s=60, spread=0.5))
    assert plain.seconds == pytest.approx(20000 * 60, rel=0.02)
    stragglers = simulation.simulate(Options(workers=1, units=20000, unit_s=60, stragglers=0.1))
    assert stragglers.seconds == pytest.approx(20000 * 60 * 1.9, rel=0.02)


def test_what_preemption_costs_is_what_theory_says() -> None:
    """A unit of T seconds that is begun anew after each preemption, of rate r, takes (exp(r T) - 1) / r in the mean."""
    options = Options(workers=20, units=5000, unit_s=600, lease_s=600, preemptions=6)
    done = simulation.simulate(options)
    assert done.seconds == pytest.approx(5000 / 20 * (math.e - 1) * 600, rel=0.03)
    assert done.preempted == pytest.approx(5000 * (math.e - 1), rel=0.05)
    assert done.twice == 0
    replaced = simulation.simulate(replace(options, replace_s=300, start_s=60))
    waits = replaced.preempted * 360 / 20
    assert replaced.seconds == pytest.approx(5000 / 20 * (math.e - 1) * 600 + waits, rel=0.03)


def test_a_unit_whose_worker_was_taken_away_waits_for_its_lease() -> None:
    """With a worker for each unit, nothing else is there to do, and so the wait shows."""
    options = Options(workers=50, units=50, unit_s=600, lease_s=1, preemptions=2)
    short = simulation.simulate(options, seed=1)
    long = simulation.simulate(replace(options, lease_s=7200), seed=1)
    assert short.seconds < 7200
    assert long.seconds > 7200 * 2 / 3
    assert long.lost > short.lost


@pytest.mark.parametrize("lease", [6.0, 60.0, 600.0])
def test_a_stall_longer_than_the_lease_has_a_unit_done_twice(lease: float) -> None:
    """A stall is too long for what is left of a lease, which is two thirds of it or more, if it lasts so long."""
    options = Options(workers=40, units=20, unit_s=60, stalls=6, stall_s=60, lease_s=lease)
    twice = sum(simulation.simulate(options, seed).twice for seed in range(400))
    stalls = 400 * 20 * 60 * 6 / 3600
    assert stalls * math.exp(-lease / 60) * 0.8 - 1 < twice < stalls * math.exp(-lease * 2 / 3 / 60) * 1.3 + 1


def test_a_table_has_a_line_for_each_lease(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulation.main(["--units", "100", "--leases", "30", "600", "--runs", "2"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["lease", "hours", "longest", "lost"]
    assert [line.split()[:2] for line in lines] == [["30", "s"], ["600", "s"]]
    assert len({len(line) for line in (header, *lines)}) == 1
