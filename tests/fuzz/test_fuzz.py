"""Whatever comes in ends in a value or in a fault with a remedy: never in a traceback, a hang, or a full memory.

The examples are the same in every run. `make fuzz` draws others, for as long as one likes.
"""

import pytest
from fuzz import everything
from fuzz.harness import Target, explore
from hypothesis import HealthCheck, settings


@pytest.mark.parametrize("target", everything.TARGETS, ids=lambda target: target.name)
def test_each_example_ends_in_a_value_or_in_a_fault_that_says_what_to_do(target: Target) -> None:
    chosen = settings(
        max_examples=target.examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    explore(target, chosen)
