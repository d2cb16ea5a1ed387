"""A cluster of SLURM on this machine: its own daemons, its own ports, all its files in one folder.

The cluster has one node, which says that it has more cores than the machine may have. Only processes that it has
started are ended. It works as root, and as any user as whom `munged` may run.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue")
CORES = 8
START_S = 30  # how long a daemon may take until it answers
SBIN = "/usr/sbin:/sbin"  # where the daemons are, which not every user's PATH has

# cred_expire: a task that was requeued waits until its old credential has expired, which takes two minutes by default.
# KillWait: how long a task that is ended has before it is killed.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=2
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_commands() -> list[str]:
    """What of SLURM and munge is not installed here."""
    return [name for name in COMMANDS if shutil.which(name, path=_path()) is None]


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs."""

    folder: Path

    def call(self, *command: object, cwd: Path | None = None) -> str:
        """Run one of SLURM's commands; what it prints. Jobs have the python that runs this."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.folder,
            env={**os.environ, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr}{self.logs()}")
        return done.stdout.strip()

    def states(self, job: str) -> dict[int, str]:
        """The state of each task of an array job, such as RUNNING, as long as the controller remembers it."""
        rows = self.call("squeue", "--array", "--noheader", "--states=all", f"--job={job}", "--format=%K %T")
        return {int(number): state for number, state in (row.split() for row in rows.splitlines())}

    def restarts(self, job: str, task: int) -> int:
        """How often a task was requeued."""
        shown = dict(part.partition("=")[::2] for part in self.call("scontrol", "show", "job", f"{job}_{task}").split())
        return int(shown["Restarts"])

    def logs(self) -> str:
        """The ends of what the daemons have said."""
        texts = {path.name: path.read_text().splitlines()[-20:] for path in sorted(self.folder.glob("*.log"))}
        return "\n".join("\n".join((f"--- {name}", *lines)) for name, lines in texts.items())


def wait_until(is_so: Callable[[], bool], what: str, seconds: float, log: Callable[[], str]) -> None:
    """Look again and again; a RuntimeError once that took too long."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain until {what}\n{log()}")
        time.sleep(0.1)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster whose jobs and daemons are ended in the end.

    It is in a temporary folder of the system: munged wants that all may look into the folders above its socket.
    """
    with TemporaryDirectory(prefix="slurm-") as name, _running_in(Path(name)) as cluster:
        yield cluster


@contextmanager
def _running_in(folder: Path) -> Iterator[Cluster]:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=_host(), user=getpass.getuser(), folder=folder, ports=_free_ports(2), cores=CORES, memory=_memory_mib()
        )
    )
    cluster = Cluster(folder)
    with ExitStack() as stack:
        files = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "munged.log",
            "seed-file": "seed",
        }
        options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
        stack.enter_context(_daemon(folder, "munged", "--foreground", *options))
        wait_until(lambda: (folder / "munge.socket").exists(), "munged listens", START_S, cluster.logs)
        stack.enter_context(_daemon(folder, "slurmctld", "-D"))
        stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", _host()))
        is_idle = lambda: "State=IDLE" in _shown_node(cluster)  # noqa: E731
        wait_until(is_idle, "the node is idle", START_S, cluster.logs)
        try:
            yield cluster
        finally:
            _end_jobs(cluster)


def _shown_node(cluster: Cluster) -> str:
    try:
        return cluster.call("scontrol", "show", "node", _host())
    except RuntimeError:  # the controller does not listen yet
        return ""


def _end_jobs(cluster: Cluster) -> None:
    """Their processes are not children of the daemons, and would stay."""
    cluster.call("scancel", f"--user={getpass.getuser()}")
    is_over = lambda: not cluster.call("squeue", "--noheader")  # noqa: E731
    wait_until(is_over, "no job is left", START_S, cluster.logs)


@contextmanager
def _daemon(folder: Path, name: str, *arguments: str) -> Iterator[None]:
    """Run a daemon in the foreground, its words going to a log; at the end it is told to end, and waited for."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [shutil.which(name, path=_path()) or name, *arguments],
            env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:{SBIN}"


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
