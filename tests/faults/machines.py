"""Hypothesis machines that run against a real database."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import Engine

from calotype.tenants import Tenant


class DatabaseMachine(RuleBasedStateMachine):
    """A machine that is given a database and a tenant; each run clears what it needs of it."""

    engine: Engine
    tenant: Tenant


def run_machine(machine: type[DatabaseMachine], engine: Engine, tenant: Tenant, *, runs: int, steps: int) -> None:
    """So many random runs, each of so many steps."""
    on_this_database = type(machine.__name__, (machine,), {"engine": engine, "tenant": tenant})
    run_state_machine_as_test(
        on_this_database,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # On a database, looking for the shortest failure takes many minutes: leave this line out to have it.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        ),
    )
