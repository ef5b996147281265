"""Runs every `bench_*.py` beside this file, or those named, and prints one table.

A bench defines `cases() -> Iterator[tuple[str, float, str]]`: what was measured, how much, unit.
What is compared is measured side by side in one run, so that the ratio holds on a busy machine.
One that says `IS_LONG = True` takes many minutes and runs only where it is named.

    python tests/bench/run_all.py [help population …]
"""

import importlib.util
import os
import platform
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main():
    known = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    chosen = sys.argv[1:] or [name for name, path in known.items() if not _is_long(path)]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    for name in chosen:
        spec = importlib.util.spec_from_file_location(f"bench_{name}", known[name])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(f"\n{name}: {module.__doc__.splitlines()[0]}")
        for what, amount, unit in module.cases():
            print(f"  {what:<56} {amount:10.4g} {unit}", flush=True)
    return 0


def _is_long(path):
    return "\nIS_LONG = True\n" in path.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
