"""The command ``microplastics``: its commands by name, exit codes, shell completion."""

import contextlib
import errno
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence

import click
from click.exceptions import Exit, NoSuchCommand

import microplastics
from microplastics.utils.errors import UserError, report_error
from microplastics.utils.io import is_write_error, write_error

PROGRAM = "microplastics"

# What a person wants, then the commands for it and the modules that define them. They import
# torch, Detectron2 and numpy when they run, so that help and completion are quick.
COMMANDS = {
    "Data": {
        "convert": "data",
        "check": "data",
        "split": "data",
        "view": "data",
        "render": "data",
        "export-dataset": "data",
        "anchors": "data",
    },
    "Model": {
        "train": "train",
        "evaluate": "train",
        "thresholds": "train",
        "plot": "train",
        "curve": "experiments",
        "cross-validate": "experiments",
        "sweep": "experiments",
        "pretrain": "pretrain",
        "export": "predict",
    },
    "Particles": {
        "predict": "predict",
        "measure": "predict",
        "report": "predict",
        "review": "review",
    },
    "More": {
        "demo": "demo",
        "gpu-check": "train",
    },
}


class Commands(click.Group):
    """The group of all commands, which imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        for commands in COMMANDS.values():
            if cmd_name in commands:
                module = importlib.import_module(f"microplastics.cli.{commands[cmd_name]}")
                return getattr(module, cmd_name.replace("-", "_"))
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        """Find the command of a line; an unknown one names those that are spelt alike."""
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            raise NoSuchCommand(args[0], possibilities=self.list_commands(ctx), ctx=ctx) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands: the epilog names the options."""
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by what a person wants."""
        width = max(map(len, self.list_commands(ctx)))
        for title, commands in COMMANDS.items():
            rows = [
                (name.ljust(width), self.get_command(ctx, name).get_short_help_str(100))
                for name in commands
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="-V, --version; -h, --help, also of each command: microplastics train -h",
)
@click.version_option(microplastics.__version__, "-V", "--version", message="%(prog)s %(version)s")
def commands() -> None:
    """Find, count and measure microplastics on photographs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, that of this process if None, and leave the process as :func:`run`."""
    complete = f"_{PROGRAM.upper()}_COMPLETE"
    if os.environ.get(complete):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(commands, {}, PROGRAM, complete, os.environ[complete]))
    # It warns of a change in PyTorch that no user of this command can do anything about.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    if arguments is None:
        arguments = sys.argv[1:]
        # What run.json and log.txt quote is a command that can be typed.
        sys.argv[0] = PROGRAM
        # On a full disk the command says so itself: no traceback for each line of the log.
        logging.raiseExceptions = False
        threading.excepthook = _thread_ended
    run(lambda: _invoke(list(arguments) or ["--help"]))


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """Print why a thread ended, unless it could not write, which those who wait for it raise."""
    if not (isinstance(args.exc_value, OSError) and is_write_error(args.exc_value)):
        threading.__excepthook__(args)


def _close_unwritable_logs() -> None:
    """Close the logs that a full disk does not take; Python would print tracebacks at its end."""
    for name in ("detectron2", "fvcore", PROGRAM):
        for handler in logging.getLogger(name).handlers:
            try:
                handler.flush()
            except (OSError, ValueError):  # or another logger's handler closed it
                with contextlib.suppress(OSError):
                    handler.stream.close()


def _invoke(arguments: list[str]) -> int | None:
    try:
        with commands.make_context(PROGRAM, arguments) as context:
            return commands.invoke(context)
    except Exit as end:
        return end.exit_code
    except click.ClickException as error:
        message = " ".join(error.format_message().split())
        context = getattr(error, "ctx", None)
        hint = f" See '{context.command_path} --help'." if context else ""
        missing = isinstance(error, click.MissingParameter)
        code = "option_missing" if missing else "option_invalid"
        raise UserError(f"{message}{hint}", code=code) from error


def run(main: Callable[[], int | None]) -> None:
    """Run a function and leave the process with its exit code.

    0 if it returned ``None``; 2 after a :class:`UserError`, printed as one line without a
    traceback; 130 after Ctrl-C; 141 if nobody reads its output any more, as after ``| head``.
    Bugs keep their traceback.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        report_error(str(error))
        code = 2
    except MemoryError:
        report_error("There is not enough memory; end other programs, or give smaller files.")
        code = 2
    except BrokenPipeError:
        # Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        # A full disk or a missing permission can surface in any library.
        if not is_write_error(error):
            raise
        place = error.filename or "a file"
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR):
            # Reading fails in the same way, and the error does not say which it was.
            report_error(f"Cannot read or write {place}: {error.strerror}; change its permissions.")
        else:
            report_error(str(write_error(place, error)))
        code = 2
    except KeyboardInterrupt:
        report_error("Stopped by Ctrl-C.")
        code = 130
    _close_unwritable_logs()
    sys.exit(code)
