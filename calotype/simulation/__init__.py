"""Plays a trace of tenants, jobs and workers by the rules of :mod:`calotype.scheduling`, without a database or device.

It shows what a limit, a weight, another worker or a setting would do, before it is changed for real.
"""

from __future__ import annotations

from calotype.simulation.engine import Options, Result, simulate
from calotype.simulation.policies import FairShare, Fifo, Policy
from calotype.simulation.report import report
from calotype.simulation.trace import (
    EXAMPLE,
    Trace,
    TraceJob,
    TraceOutage,
    TraceTenant,
    TraceWorker,
    parse_trace,
    read_trace,
    with_workers,
)

__all__ = [
    "EXAMPLE",
    "FairShare",
    "Fifo",
    "Options",
    "Policy",
    "Result",
    "Trace",
    "TraceJob",
    "TraceOutage",
    "TraceTenant",
    "TraceWorker",
    "parse_trace",
    "read_trace",
    "report",
    "simulate",
    "with_workers",
]
