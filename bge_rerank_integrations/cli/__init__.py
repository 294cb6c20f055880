"""The shell command `bge-rerank`."""

import io
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from bge_rerank_integrations import __version__
from bge_rerank_integrations.errors import InvalidInputError, MissingExtra, RerankError

try:
    import typer
    from typer.core import TyperCommand

    from bge_rerank_integrations.cli.batch import batch
    from bge_rerank_integrations.cli.judged import calibrate, evaluate_models
    from bge_rerank_integrations.cli.models import models
    from bge_rerank_integrations.cli.rerank import rerank
    from bge_rerank_integrations.cli.tools import doctor, export, verify
except ModuleNotFoundError as error:
    if str(error.name).startswith("bge_rerank_integrations"):
        raise  # no extra installs a missing part of this package
    # the installed script imports this module first, so an exception would be a traceback
    raise SystemExit(f"bge-rerank: {MissingExtra(str(error.name), 'cli')}") from None


INTERRUPTED = 130
"""The exit code of typer after Ctrl-C."""

_UsageError: Any = typer.BadParameter.__bases__[0]
"""click's, which typer does not export."""


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if hasattr(error, "possibilities") and not error.possibilities:
                error.message += " (put -- before a text that begins with a dash)"
            raise


app = typer.Typer(
    help="Order passages by how well they answer a query, with BAAI's BGE rerankers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (rerank, batch, models, doctor, calibrate, export, verify):
    app.command(command.__name__.replace("_", "-"), cls=_Command)(command)
app.command("eval", cls=_Command)(evaluate_models)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _all_commands(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command; exit with 2 for arguments and input that are invalid, 1 for the rest.

    Ctrl-C ends it at once with 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # half a surrogate pair cannot be written as UTF-8, but its escape is valid JSON
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.basicConfig(format="bge-rerank: %(message)s")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except RerankError as error:
        message = in_shell_words(str(error), _options(sys.argv[1:]))
        _fail(message, 2 if isinstance(error, InvalidInputError) else 1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED and "ray" not in sys.modules:  # which stops its processes
            sys.stderr.flush()
            os._exit(INTERRUPTED)  # a normal exit would wait for the batch that is running
        raise
    except OSError as error:
        # otherwise the interpreter tries to flush again at exit, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        _fail(str(error), 1)


def in_shell_words(message: str, options: Mapping[str, Sequence[str]]) -> str:
    """Replace the Python names of options in a message with those of the shell.

    `options` maps a Python name to the option, and to its negation if there is one. `top_n=3`
    becomes `--top-n 3`, `normalize=False` becomes `--no-normalize`. A name of one word is replaced
    only where the message is about it: "device is", "leave device out".
    """

    def assigned(match: re.Match[str]) -> str:
        names, value = options[match[1]], match[2].strip("'\"")
        if value in ("True", "False") and len(names) > 1:
            return names[value == "False"]
        return names[0] if value == "True" else f"{names[0]} {value}"

    for name in sorted(options, key=len, reverse=True):
        message = re.sub(
            rf"(?<![\w./-])({name})=('[^']*'|\"[^\"]*\"|[\w.:/-]*\w)", assigned, message
        )
        word = rf"(?<![\w./'\"-]){name}(?![\w=(/.]|['\"])"
        if "_" not in name:
            word = rf"(?:^{name}(?= is )|(?<=leave ){name}(?= out))"
        message = re.sub(word, options[name][0], message)
    message = message.removeprefix("Value error, ").replace(
        ", or None for all", "; all if left out"
    )
    return message.replace(", or None", "")


def _options(arguments: Sequence[str]) -> dict[str, Sequence[str]]:
    """The options of the command that was run, by their Python names."""
    commands: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = commands.get(arguments[0]) if arguments else None
    return {
        str(parameter.name): [*parameter.opts[:1], *parameter.secondary_opts]
        for parameter in (command.params if command else ())
        if parameter.opts[0].startswith("--")
    }


def _fail(message: str, code: int) -> None:
    print("bge-rerank:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
