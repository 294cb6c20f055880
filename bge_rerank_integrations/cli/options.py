"""The flags of the commands: shared ones, and those made from the package's options."""

import re
from collections.abc import Callable, Mapping
from functools import partial, wraps
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from bge_rerank_integrations.base.option_group import Options, kinds, read_options
from bge_rerank_integrations.options import SECRETS

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
ShowProgress = Annotated[
    bool | None,
    typer.Option(
        "--show-progress/--no-progress", help="A progress bar; by default if stderr is a terminal."
    ),
]
Model = Annotated[str, typer.Option(help="Hub id, folder or 'offline'.")]

# a secret on the command line would be visible in the list of processes
NOT_FLAGS = SECRETS | {"show_progress", "on_trace", "trace_texts"}
NAMES = {"score_threshold": "--threshold", "base_url": "--url"}
SETTINGS: dict[str, dict[str, Any]] = {
    "calibration": {"exists": True, "dir_okay": False},
    "score_cache": {"metavar": "FILE"},
    "cache_dir": {"metavar": "FOLDER"},
    "data": {"metavar": "FOLDER"},
    **{name: {"metavar": "FILE"} for name in ("run", "qrels", "judged")},
}


class Only:
    """An annotation of a group: the command takes only these of its options."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)

    def __contains__(self, name: str) -> bool:
        return name in self.names


class Except(Only):
    """An annotation of a group: the command takes all of its options but these."""

    def __contains__(self, name: str) -> bool:
        return name not in self.names


def with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """The command, with a flag for each option of a parameter whose type is a group of options."""
    parameters: list[Parameter] = []
    flags: list[Parameter] = []
    groups: dict[str, tuple[type[Options], list[str]]] = {}
    hints = get_type_hints(function, include_extras=True)
    for parameter in signature(function).parameters.values():
        kind, *rest = get_args(hints[parameter.name]) or [hints[parameter.name]]
        if not (isinstance(kind, type) and issubclass(kind, Options)):
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        taken = rest[0] if rest else Except()
        names = [name for name in kind.model_fields if name in taken and name not in NOT_FLAGS]
        groups[parameter.name] = kind, names
        flags += [_flag(name, kind.model_fields) for name in names]

    @wraps(function)
    def command(**given: Any) -> None:
        for parameter, (group, names) in groups.items():
            values = {name: given.pop(name) for name in names}
            chosen = {name: value for name, value in values.items() if value not in (None, [])}
            given[parameter] = read_options(group, chosen, caller="bge-rerank")
        function(**given)

    made = signature(function).replace(parameters=[*parameters, *flags])
    command.__signature__ = made  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in [*parameters, *flags]}
    return command


def _flag(name: str, fields: Mapping[str, FieldInfo]) -> Parameter:
    field = fields[name]
    kind, *several = [one for one in kinds(field.annotation) if one is not NoneType]
    default, description = field.default, _in_shell_words(field.description or "", fields)
    lists = [one for one in (kind, *several) if get_origin(one) is tuple]
    if lists:
        (item,) = set(kinds(get_args(lists[0])[0]))
        kind, default, description = list[item], None, f"{description} May be repeated."  # type: ignore[valid-type]
    if name == "calibration":
        kind = Path
    flags = [NAMES[name]] if name in NAMES else []
    if kind is bool and default is False:  # no flag to say no
        flags = [f"--{name.replace('_', '-')}"]
    settings = SETTINGS.get(name, {})
    if kind in (int, float):
        settings = {"parser": partial(_number, kind), "metavar": f"<{kind.__name__}>"}
    option = typer.Option(*flags, help=description, **settings)
    optional = kind | None if default is None else kind
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[optional, option]
    )


def _number(kind: type[int | float], text: str) -> int | float | str:
    try:
        return kind(text)
    except ValueError:
        return text  # the group of options refuses it with a better message


def _in_shell_words(description: str, fields: Mapping[str, FieldInfo]) -> str:
    def flag(match: re.Match[str]) -> str:
        name = match[0]
        return NAMES.get(name, f"--{name.replace('_', '-')}") if name in fields else name

    return re.sub(r"[a-z]+(_[a-z]+)+", flag, description.replace("None: ", "by default "))
