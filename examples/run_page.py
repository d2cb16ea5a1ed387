"""Run the ```sh and ```python blocks of a page in one shell, in order, as somebody does who pastes them.

    python examples/run_page.py README.md --folder demo

The commands of the README write to the folder `walk`. With --folder they write to that folder instead: `make demo`
leaves its results in `demo`, and does not get in the way of somebody who pastes the same commands afterwards.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WALK = re.compile(r"\bwalk\b")


def commands(page: str, folder: str = "walk") -> list[str]:
    """What is run, writing to `folder`: each line of a ```sh block, and each ```python block as a whole."""
    found: list[str] = []
    for language, text in BLOCK.findall(WALK.sub(folder, page)):
        found += [f"python -c {shlex.quote(text)}"] if language == "python" else filter(None, text.splitlines())
    return found


def as_script(lines: list[str]) -> str:
    """A script for one shell that shows each command before it runs it, and stops at the first that fails."""
    return "set -e\n" + "".join(f"printf '$ %s\\n' {shlex.quote(line)}\n{line}\n" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--folder", default="walk", help="the folder to write to, instead of walk")
    args = parser.parse_args()
    started = time.monotonic()
    script = as_script(commands(args.page.read_text(encoding="utf-8"), args.folder))
    done = subprocess.run(["bash", "-c", script])
    if done.returncode:
        print(f"failed with exit code {done.returncode}", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - started:.0f} s; the results are in {args.folder}")
    for picture in sorted(Path(args.folder).glob("*.png")):
        print(f"look at {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
