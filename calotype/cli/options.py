"""Options that several commands have: declared once, as the fields of a dataclass, and spread over each command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, in the place of each parameter that is a dataclass, the fields of it as options.

    Typer makes options of what the signature of a command says; the command itself gets the dataclasses.
    """
    own = inspect.signature(command, eval_str=True)
    groups = {name: one.annotation for name, one in own.parameters.items() if is_dataclass(one.annotation)}
    options = [
        option
        for name, one in own.parameters.items()
        for option in (_options(groups[name]) if name in groups else [one.replace(kind=Parameter.KEYWORD_ONLY)])
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: _take(group, given) for name, group in groups.items()}
        command(**{name: value for name, value in given.items() if name in own.parameters}, **made)

    run.__signature__ = own.replace(parameters=options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options(group: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])


def _take(group: Any, given: Mapping[str, Any]) -> Any:
    return group(**{field.name: given[field.name] for field in fields(group)})
