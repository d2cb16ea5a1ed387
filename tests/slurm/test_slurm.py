"""`make slurm`: array jobs of a real SLURM, some of whose tasks are ended on the way, make what one process makes."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ROOT
from slurm_cluster import Cluster, missing_commands, running_cluster, wait_until
from small_jobs import PLUS_ONE, differing, fields_arguments, pyramid_of, tree

EXAMPLE = ROOT / "examples" / "many_machines" / "slurm.sh"
TASKS = 4
POINTS = 400
SHARD_PAIRS = 2
PATIENCE_S = 180


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if missing := missing_commands():
        pytest.skip(f"SLURM is not installed here, or not all of it: there is no {', '.join(missing)}")
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample volume, and a spec with some hundred pairs."""
    made = tmp_path_factory.mktemp("jobs")
    here("examples/make_sample_volume.py", made / "sample", "--size", 1024, "--sections", 9)
    draw = random.Random(0)
    rows = {(draw.randrange(400, 600), draw.randrange(400, 600), draw.randrange(2, 9)) for _ in range(POINTS)}
    (made / "points.csv").write_text("x,y,z\n" + "".join(f"{x},{y},{z}\n" for x, y, z in sorted(rows)))
    spec = {"src_spec_path": made / "sample" / "coarse.json", "dst_spec_path": made / "spec.json"}
    options = [part for name, path in spec.items() for part in (f"--{name}", path)]
    here("create_spec.py", *options, "--points_path", made / "points.csv", "--offsets", -1)
    return made


def here(script: str, *arguments: object) -> None:
    """Run a script in this machine's usual way."""
    subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, check=True)


@dataclass(frozen=True)
class ArrayJob:
    """An array job that was submitted: the example's script, with what it is told."""

    cluster: Cluster
    number: str

    def wait_for(self, task: int, state: str) -> None:
        self.wait_until(lambda: self.cluster.states(self.number).get(task) == state, f"task {task} is {state}")

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for something that the job does; a task that fails ends the waiting."""

        def is_so_or_failed() -> bool:
            states = self.cluster.states(self.number)
            assert "FAILED" not in states.values(), f"{states}\n{self.logs()}"
            return is_so()

        wait_until(is_so_or_failed, what, PATIENCE_S, self.logs)

    def finish(self) -> None:
        for task in range(TASKS):
            self.wait_for(task, "COMPLETED")

    def requeue(self, task: int) -> None:
        self.cluster.call("scontrol", "requeue", f"{self.number}_{task}")

    def logs(self) -> str:
        texts = {path.name: path.read_text() for path in sorted(self.cluster.folder.glob(f"{self.number}_*.txt"))}
        return "\n".join(f"--- {name}\n{text}" for name, text in texts.items())


def submit(cluster: Cluster, *arguments: object) -> ArrayJob:
    small = ("--cpus-per-task=1", "--mem-per-cpu=64M", "--time=10", f"--output={cluster.folder}/%A_%a.txt")
    command = ("sbatch", "--parsable", f"--array=0-{TASKS - 1}", *small, EXAMPLE, *arguments)
    return ArrayJob(cluster, cluster.call(*command, cwd=ROOT))


def shards_of(folder: Path, task: int) -> dict[Path, tuple[int, int]]:
    """The files of a task's whole shards, images and fields: which file each is, and when it was written.

    A task that was killed between the two files of a shard makes both again.
    """
    images, fields = ({path.name for path in (folder / name).glob("[0-9]*.h5")} for name in ("a", "field_0_a"))
    own = [name for name in images & fields if int(name.partition("_")[0]) // SHARD_PAIRS % TASKS == task]
    files = [folder / kind / name for name in own for kind in ("a", "field_0_a")]
    return {path.relative_to(folder): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_tasks_that_were_ended_go_on_and_the_shards_are_those_of_one_process(cluster: Cluster, folder: Path) -> None:
    def arguments(out: str) -> list[object]:
        return ["--spec_path", folder / "spec.json", "--dst_path", folder / out, "--name", "a", "--shards", SHARD_PAIRS]

    here("make_dataset.py", *arguments("here"))
    job = submit(cluster, "make_dataset.py", *arguments("there"))
    made, before = folder / "there", {}
    for task in (1, 2):
        job.wait_until(lambda task=task: len(shards_of(made, task)) > 2, f"task {task} has begun")
    cluster.call("scancel", f"{job.number}_1")
    job.wait_for(1, "CANCELLED")
    job.requeue(1)
    job.requeue(2)
    job.wait_for(2, "PENDING")
    for task in (1, 2):
        before[task] = shards_of(made, task)
        assert len(before[task]) < len(shards_of(folder / "here", task)), "it was done already"
    job.finish()

    assert [cluster.restarts(job.number, task) for task in range(TASKS)] == [0, 1, 1, 0]
    for task, shards in before.items():
        assert shards.items() <= shards_of(made, task).items()  # they were not made again
    expected = tree(folder / "here")
    assert len(expected) > POINTS * 0.8 / SHARD_PAIRS * 2
    assert tree(folder / "there") == expected


def test_fields_of_an_array_job_are_those_of_one_process(cluster: Cluster, folder: Path) -> None:
    here("make_dataset.py", "--spec_path", folder / "spec.json", "--dst_path", folder / "one", "--name", "a")
    pyramid_of(folder, PLUS_ONE)
    images, prior = folder / "one" / "a.h5", folder / "one" / "field_0_a.h5"
    here("generate_fields.py", *fields_arguments(folder, images, prior, temp_dir=folder / "shards_here"))
    there = fields_arguments(folder, images, prior, temp_dir=folder / "shards_there")
    job = submit(cluster, "generate_fields.py", *there)
    job.wait_until(lambda: any(folder.glob("shards_there/*.h5")), "a task has begun")
    job.requeue(3)
    job.finish()

    for name in ("here", "there"):
        here("concat_fields.py", "--temp_dir", folder / f"shards_{name}", "--dst_path", folder / f"{name}.h5")
    assert cluster.restarts(job.number, 3) == 1
    assert differing(folder / "there.h5", folder / "here.h5") == []
