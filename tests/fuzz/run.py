"""``make fuzz``: the targets under a coverage-guided fuzzer (atheris), for FUZZ_SECONDS seconds (60).

Owns the corpus, in a directory that goes with the run, and the report: an input that breaks a target
is printed as a line of Python that shows it again.  FUZZ_PLANT=1 plants an error, to see that it is found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = os.environ.get("FUZZ_SECONDS", "60")


def fuzz(corpus: str) -> None:
    """Run the fuzzer; it ends this process."""
    import atheris

    with atheris.instrument_imports(include=["dsm", "fuzz"]):
        from fuzz import targets
    target = targets.one
    if os.environ.get("FUZZ_PLANT"):

        def target(data: bytes) -> None:
            targets.one(data)
            assert data[:1] != b"\3" or len(data) < 10, "planted"

    limits = [f"-max_total_time={SECONDS}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
    artifacts = f"-artifact_prefix={corpus}/found-"
    atheris.Setup([sys.argv[0], *limits, artifacts, "-print_final_stats=1", corpus], target)
    atheris.Fuzz()


def main() -> int:
    """Fuzz in a process of its own, and report."""
    with tempfile.TemporaryDirectory(prefix="dsm-fuzz-") as corpus:
        from fuzz import targets

        for number, seed in enumerate(targets.seeds()):
            Path(corpus, f"seed-{number}").write_bytes(seed)
        result = subprocess.run([sys.executable, __file__, corpus], stderr=subprocess.PIPE, text=True)
        found = sorted(Path(corpus).glob("found-*"))
        lines = result.stderr.splitlines()
        runs = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
        for path in found:
            print(f"found ({path.name.partition('-')[2].partition('-')[0]}), to see it again:")
            print(f"    from fuzz import targets; targets.one(bytes.fromhex({path.read_bytes().hex()!r}))")
        if found or result.returncode:
            print("\n".join(lines[-40:]))
            return 1
        print(f"{runs} inputs in {SECONDS} s, nothing found")
        return 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if len(sys.argv) > 1:
        fuzz(sys.argv[1])
    else:
        sys.exit(main())
