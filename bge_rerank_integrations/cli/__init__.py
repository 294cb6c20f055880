"""The shell command `bge-rerank`: one file for each of its commands."""

import io
import logging
import os
import sys

from bge_rerank_integrations.errors import MissingExtra, RerankError, UnreadableInput

try:
    import typer

    from bge_rerank_integrations.cli.batch import batch
    from bge_rerank_integrations.cli.doctor import doctor
    from bge_rerank_integrations.cli.export import export
    from bge_rerank_integrations.cli.judged import calibrate, evaluate_models, sweep_layers
    from bge_rerank_integrations.cli.models import models
    from bge_rerank_integrations.cli.rerank import rerank
    from bge_rerank_integrations.cli.verify import verify
except ModuleNotFoundError as error:
    if str(error.name).startswith("bge_rerank_integrations"):
        raise  # no extra brings what is missing of this package itself
    # the installed script imports this module first of all, so any exception would be a traceback
    raise SystemExit(f"bge-rerank: {MissingExtra(str(error.name), 'cli')}") from None

app = typer.Typer(
    help="Order passages by how well they answer a query, with BAAI's BGE rerankers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


for command in (rerank, batch, models, doctor, sweep_layers, calibrate, export, verify):
    app.command(command.__name__.replace("_", "-"))(command)
app.command("eval")(evaluate_models)


def main() -> None:
    """Run the command; exit with 2 for input that cannot be read, 1 for any other failure."""
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
    except UnreadableInput as error:
        _fail(error, 2)
    except RerankError as error:
        _fail(error, 1)
    except OSError as error:
        # what could not be written is not to be tried again, and complained of, at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print("bge-rerank:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(code)
