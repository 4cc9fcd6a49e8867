"""The command line: one file a command; here they are put together, and errors become exit codes."""

import os
import shlex
import sys

import click
from click.shell_completion import shell_complete

import hubtool
from hubtool.cli.commands import Commands
from hubtool.cli.console import Console
from hubtool.convert.device import require_backend
from hubtool.errors import HubtoolError, InterruptedByUser

COMPLETE_VARIABLE = "_HUBTOOL_COMPLETE"
"""By which a shell asks for completions, and for the script that asks: `_HUBTOOL_COMPLETE=bash_source hubtool`."""

EXTRAS = {"starlette": "rehearse", "uvicorn": "rehearse"}
"""Which extra brings a package that is imported where it is needed."""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(hubtool.__version__, prog_name="hubtool")
def cli() -> None:
    """Publish quantized models on the Hugging Face Hub: planned, converted, measured, verified."""


def main() -> int:
    """The exit code: 0 done, 1 failed or problems found, 2 usage, 75 memory guard, 130 interrupted."""
    try:
        asked = os.environ.get(COMPLETE_VARIABLE)
        code = complete(asked) if asked else run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the answer has seen enough; nothing is left that could be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = HubtoolError.exit_code
    return code


def complete(asked: str) -> int:
    """Answer what a shell asked for: completions, or the script that asks for them; the exit code."""
    return shell_complete(cli, {}, "hubtool", COMPLETE_VARIABLE, asked)


def run(arguments: list[str]) -> int:
    """The exit code of a command line; errors for people are printed, any other exception is raised."""
    context_console = Console()
    try:
        with cli.make_context("hubtool", list(arguments)) as context:
            context.obj = context_console
            try:
                result = cli.invoke(context)
            finally:
                if isinstance(context.obj, Console):
                    context_console = context.obj
            return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.ClickException as error:
        if "--json" in arguments:
            Console(json_mode=True).error(error.format_message())
        else:
            error.show()
        return error.exit_code
    except HubtoolError as error:
        context_console.error(str(error))
        return error.exit_code
    except ImportError as error:
        return _explain(error, context_console)
    except click.Abort:
        context_console.error("not done: the question was not answered with yes")
        return HubtoolError.exit_code
    except KeyboardInterrupt:
        again = shlex.join(["hubtool", *arguments])
        context_console.error(f"interrupted; what is done is kept: run the same command again and it goes on: {again}")
        return InterruptedByUser.exit_code


def _explain(error: ImportError, console: Console) -> int:
    """Say which extra is not installed, or what is wrong with MLX's backend; any other ImportError is raised."""
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    if extra:
        console.error(f"needs the extra {extra}: {error}; pip install 'hubtool[{extra}]'")
        return HubtoolError.exit_code
    try:
        require_backend()
    except HubtoolError as missing:
        console.error(str(missing))
        return missing.exit_code
    raise error
