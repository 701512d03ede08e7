"""make fuzz: the targets in turn with new seeds, until so many minutes of CPU are spent; a line for each.

A target that fails is told with its smallest example, and the others go on.
"""

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
import torch
from fuzz.everything import TARGETS
from fuzz.harness import Target, explore, peak
from hypothesis import HealthCheck, Phase, settings

SLICE = 20.0  # seconds of CPU for a target before it is the next one's turn


def main() -> int:
    """Fuzz, and return 1 if an example failed."""
    options = argparse.ArgumentParser(description="fuzz every target")
    options.add_argument("--minutes", type=float, default=60, help="of CPU, for all targets together")
    options.add_argument("--only", default="", help="targets with this in their name")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    process = psutil.Process()
    targets = [target for target in TARGETS if chosen.only in target.name]
    examples, failures, grown = dict.fromkeys(targets, 0), dict[Target, str](), dict.fromkeys(targets, 0.0)
    while time.process_time() < 60 * chosen.minutes and len(failures) < len(targets):
        for target in targets:
            if target not in failures:
                before = peak()
                examples[target] += explored(target, failures)
                grown[target] += peak() - before
                print(f"{target.name}: {process.memory_info().rss / 1e6:.0f} MB held", file=sys.stderr, flush=True)
    for target in targets:
        end = "FAILED" if target in failures else "ok"
        print(f"{target.name:24} {examples[target]:8} examples  {grown[target]:6.0f} MB more  {end}")
    print(f"{sum(examples.values())} examples, {time.process_time() / 60:.1f} minutes of CPU, {peak():.0f} MB at most")
    print(*failures.values(), sep="\n")
    return int(bool(failures))


def explored(target: Target, failures: dict[Target, str]) -> int:
    """How many examples were tried in this turn. A failure is noted."""
    tried, began = 0, time.process_time()

    def counted(value: object) -> None:
        nonlocal tried
        tried += 1
        target.check(value)

    while time.process_time() - began < SLICE and target not in failures:
        try:
            explore(target, BUDGET, counted)
        except BaseException as fault:
            if isinstance(fault, KeyboardInterrupt):
                raise
            failures[target] = f"\n{target.name}\n" + "".join(traceback.format_exception(fault, limit=-8))[:20_000]
            print(failures[target], flush=True)
    return tried


BUDGET = settings(
    max_examples=200,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
if __name__ == "__main__":
    raise SystemExit(main())
