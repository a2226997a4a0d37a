"""What the numbers say, in sentences: who wins a row, and where no winner can be named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

JsonObject = dict[str, Any]

#: Rows beside latency that follow from timed calls.
_FROM_TIMES: Final = frozenset({"images_per_second", "cost_per_million_usd"})

#: Below this relative difference two measured times, memories or distances count as equal.
TIE: Final = 0.05

#: The same for rows that are measured once, or with the allocator's leavings in them.
_COARSE: Final = {"cold_start_seconds": 0.3, "peak_memory_mb": 0.3}


def winner(row: JsonObject, columns: Sequence[JsonObject], contenders: Sequence[JsonObject]) -> str | None:
    """The name of the contender that is best in a row of the matrix, or None when it cannot be told apart.

    KID is decided by its intervals, everything else by a difference of more than 5 %, or 30 % where it is
    measured once. An estimated p99 decides nothing, nor do times that scatter widely.
    """
    timed = row["key"].startswith("latency_") or row["key"] in _FROM_TIMES
    if timed and any(_any_batch(contender, "scattered") for contender in contenders):
        return None
    if row["key"] == "latency_p99_seconds" and any(_any_batch(c, "p99_is_estimate") for c in contenders):
        return None
    sign = 1.0 if row["better"] == "lower" else -1.0
    values = {column["name"]: column["values"][row["key"]] for column in columns}
    ranked = sorted((name for name in values if values[name] is not None), key=lambda name: sign * values[name])
    if len(ranked) < 2:
        return None
    first, second = ranked[:2]
    if row["key"] == "kid":
        return first if _kid_apart(_by_name(contenders, first), _by_name(contenders, second)) else None
    tie = _COARSE.get(row["key"], TIE)
    return first if abs(values[first] - values[second]) > tie * abs(values[second]) else None


def in_short(result: JsonObject) -> list[str]:
    """The findings that decide, one sentence each, most important first."""
    measured = [contender for contender in result["contenders"] if contender["status"] == "succeeded"]
    failed = [contender for contender in result["contenders"] if contender["status"] == "failed"]
    found = [sentence for sentence in (_quality(measured), _speed(measured), _cost(measured)) if sentence]
    names = _list([contender["name"] for contender in failed])
    if failed:
        found.append(f"{names} could not be measured; see below for the reason.")
    return found


def number(value: float) -> str:
    """Three significant digits with thousands separators."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:#.3g}"
    return f"{value:.6f}" if "e" in text else text.rstrip(".")


def seconds(value: float) -> str:
    """Milliseconds below a second."""
    return f"{number(value * 1000)} ms" if value < 1 else f"{number(value)} s"


def _quality(measured: Sequence[JsonObject]) -> str | None:
    scored = sorted((c for c in measured if c["kid"]), key=lambda contender: float(contender["kid"]["value"]))
    if not scored:
        return _quality_by_fd(measured)
    best = scored[0]
    value = number(best["kid"]["value"])
    if len(scored) == 1:
        return f"{best['name']} is at a KID of {value} from the held-out images (0 is indistinguishable)."
    second = scored[1]
    if _kid_apart(best, second):
        return (
            f"{best['name']} makes the images closest to the held-out ones: KID {value} against "
            f"{number(second['kid']['value'])} for {second['name']}, and the 95 % intervals do not overlap."
        )
    return (
        f"{best['name']} and {second['name']} cannot be told apart in quality: KID {value} and "
        f"{number(second['kid']['value'])}, with overlapping 95 % intervals. More samples would narrow them."
    )


def _quality_by_fd(measured: Sequence[JsonObject]) -> str | None:
    scored = sorted((c for c in measured if c["fd"]), key=lambda contender: float(contender["fd"]["value"]))
    if not scored:
        return None
    best = scored[0]["fd"]
    return (
        f"{scored[0]['name']} has the smallest distance to the held-out images: {best['name']} {number(best['value'])}."
    )


def _speed(measured: Sequence[JsonObject]) -> str | None:
    timed = [(c["name"], c["latency"][0]) for c in measured if c["latency"] and c["latency"][0]["status"] == "measured"]
    if not timed:
        return None
    timed.sort(key=lambda pair: float(pair[1]["p50"]))
    (name, fast), *others = timed
    size = fast["batch_size"]
    call = "An image" if size == 1 else f"A batch of {size}"
    if not others:
        return f"{call} takes {seconds(fast['p50'])} with {name} (median)."
    other, slow = others[0]
    if fast["scattered"] or slow["scattered"]:
        return "Times scatter too widely to name the fastest contender: something else may have used the machine."
    if slow["p50"] <= fast["p50"] * (1 + TIE):
        return f"{name} and {other} are equally fast: {call.lower()} takes {seconds(fast['p50'])} (median)."
    return (
        f"{name} is the fastest: {call.lower()} takes {seconds(fast['p50'])} (median), "
        f"{slow['p50'] / fast['p50']:.2g} times less than with {other} ({seconds(slow['p50'])})."
    )


def _cost(measured: Sequence[JsonObject]) -> str | None:
    costs = [(c["cost_per_million_usd"], c["name"]) for c in measured if c["cost_per_million_usd"] is not None]
    if not costs:
        return None
    parts = [f"{number(cost)} USD with {name}" for cost, name in sorted(costs)]
    return f"A million images cost {_list(parts)}, on a device that is never idle."


def _any_batch(contender: JsonObject, flag: str) -> bool:
    return contender["status"] == "succeeded" and any(batch[flag] for batch in contender["latency"])


def _kid_apart(first: JsonObject, second: JsonObject) -> bool:
    high, low = first["kid"]["ci_high"], second["kid"]["ci_low"]
    return high is not None and low is not None and float(high) < float(low)


def _by_name(contenders: Sequence[JsonObject], name: str) -> JsonObject:
    return next(contender for contender in contenders if contender["name"] == name)


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
