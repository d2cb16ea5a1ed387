"""Run the commands of a page's ```sh blocks, in order, as they stand: what the README says is what `make demo` does.

python examples/run_readme.py README.md
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The lines of all ```sh blocks."""
    return [line for block in BLOCK.findall(page) for line in block.splitlines() if line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    started = time.monotonic()
    for command in commands(parser.parse_args().page.read_text(encoding="utf-8")):
        print(f"$ {command}", flush=True)
        done = subprocess.run(["bash", "-c", command])
        if done.returncode:
            print(f"failed with exit code {done.returncode}", file=sys.stderr)
            return 1
    print(f"done in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
