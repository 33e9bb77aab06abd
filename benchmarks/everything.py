"""Everything that `make bench` measures on a CPU, one script after the other, as one table with peers, floors and aims.

    python benchmarks/everything.py [--only push startup ...] [--rows rows.jsonl]

Nothing else may run on the machine meanwhile. Takes about 35 minutes on 2 cores; each script prints its own tables as
it ends, and the table of all comes last. A script that fails is named in its place, and the others still run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from one_table import PLACE, note, show

SCRIPTS = {
    "push": "push_time.py",
    "startup": "startup.py --repeats 3",
    "learner": "learner.py --pairs 2 --steps 3 --sides ours/bfloat16,trl/bfloat16",
    "online": "online_vs_trl.py --steps 8",
    "online-512": "online_vs_trl.py --prompt-tokens 512 --steps 5",
    "online-0.5b": "online_vs_trl.py --shape qwen2-0.5b --steps 4",
    "round": "round_overhead.py --prompts 640 --repeats 2",
    "scaling": "scaling.py --generators 1 32",
    "memory": "scaling.py --memory 100000",
}
"""Name -> script with its arguments."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--rows", type=Path, help="keep the rows here, as JSON lines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = (args.rows or Path(folder) / "rows.jsonl").absolute()
        os.environ[PLACE] = str(rows)
        failed = [name for name in args.only if not succeeds(name)]
        print("\n" + (show(rows) if rows.exists() else "nothing was measured"))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def succeeds(name: str) -> bool:
    """Run a script; what it prints goes where ours goes."""
    script, *arguments = SCRIPTS[name].split()
    print(f"\n## {script} {' '.join(arguments)}\n", flush=True)
    began = time.monotonic()
    code = subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *arguments]).returncode
    print(f"\n{name}: {time.monotonic() - began:.0f} s, exit code {code}", flush=True)
    if code:
        note(f"{name} failed", code, unit="exit code")
    return code == 0


if __name__ == "__main__":
    main()
