"""How evenly device time was given out, measured while it is short: while somebody waits and at least two have work.

At every moment what the devices do is held against the weighted max-min fair division of it: in proportion to the
tenants' weights, but nobody gets more devices than it has jobs for (Bertsekas and Gallager 1992, section 6.5.2). Jobs
run to their end, so nobody has exactly that at every moment; how far behind anybody falls is its lag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from calotype.simulation.world import World


@dataclass(kw_only=True)
class Account:
    """One tenant in one pool, over all times at which device time was short; device-seconds."""

    got: float = 0.0
    fair: float = 0.0
    #: How far behind its fair part it is within this busy period, and the most it was in any.
    lag: float = 0.0
    most_lag: float = 0.0


@dataclass
class Fairness:
    """Follows a world through time; call :meth:`note` after each change and :meth:`advance` before the next."""

    world: World
    #: By pool and tenant.
    accounts: dict[str, dict[str, Account]] = field(default_factory=dict)
    _now: float = 0.0
    _got: dict[str, dict[str, float]] = field(default_factory=dict)
    _fair: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.accounts = {pool: {name: Account() for name in self.world.tenants} for pool in self.world.pools}

    def note(self) -> None:
        """What is given out from now on, and what would be fair; in devices."""
        for pool in self.world.pools:
            got = self._given(pool)
            waiting = self._usable(pool)
            wanted = {name: got[name] + waiting[name] for name in got if got[name] + waiting[name] > 0}
            short = len(wanted) > 1 and any(waiting.values())
            weights = {name: self.world.tenants[name].weight for name in wanted}
            self._got[pool] = {name: got[name] for name in wanted} if short else {}
            self._fair[pool] = max_min_fair(sum(got.values()), wanted, weights) if short else {}
            if not short:
                for account in self.accounts[pool].values():
                    account.lag = 0.0

    def _given(self, pool: str) -> dict[str, float]:
        given = dict.fromkeys(self.world.tenants, 0.0)
        for device in self.world.devices:
            for job in device.call.jobs if device.call is not None and device.spec.pool == pool else ():
                given[job.spec.tenant] += job.batch_share
        return given

    def _usable(self, pool: str) -> dict[str, int]:
        """For how many more jobs each tenant could use a device."""
        world, queues = self.world, self.world.pools[pool]
        waiting = {name: world.waiting.of(name, queues) for name in world.tenants}
        return {name: min(count, world.room(name)) if count else 0 for name, count in waiting.items()}

    def advance(self, now: float) -> None:
        """Time passes to ``now``."""
        seconds, self._now = now - self._now, now
        for pool, fair in self._fair.items():
            for name, devices in fair.items():
                account, got = self.accounts[pool][name], self._got[pool][name]
                account.got += got * seconds
                account.fair += devices * seconds
                account.lag += (devices - got) * seconds
                account.most_lag = max(account.most_lag, account.lag)

    def jain(self, pool: str) -> float | None:
        """Jain's index of what each tenant got over its fair part: 1 when all equal, 1/n when one had all."""
        parts = [account.got / account.fair for account in self.accounts[pool].values() if account.fair > 0]
        squares = sum(part * part for part in parts)
        return sum(parts) ** 2 / (len(parts) * squares) if len(parts) > 1 and squares > 0 else None


def max_min_fair(total: float, wanted: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Divides ``total`` by weight, nobody getting more than it wants; what is left over goes to the others."""
    given: dict[str, float] = {}
    # Who wants least for its weight is satisfied first.
    order = sorted(wanted, key=lambda name: wanted[name] / weights[name])
    left, weight_left = total, sum(weights[name] for name in order)
    for name in order:
        given[name] = min(wanted[name], left * weights[name] / weight_left)
        left -= given[name]
        weight_left -= weights[name]
    return given
