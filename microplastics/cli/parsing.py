"""Options, their sections in the help, and Detectron2's trailing ``KEY VALUE`` pairs."""

import functools
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from microplastics.model_zoo import config_names

_SECTIONS = "MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|WRITERS|GLOBAL"
_KEY = re.compile(
    rf"(?:{_SECTIONS})(?:\.\w+)+|OUTPUT_DIR|SEED|VERSION|VIS_PERIOD|CUDNN_BENCHMARK"
    "|FLOAT32_PRECISION"
)
_NUMBER = re.compile(r"-[\d.]+(?:e-?\d+)?", re.IGNORECASE)


class Option(click.Option):
    """An option with a section in the help, and possibly several values: ``--input a b``."""

    section = "Options"

    def make_metavar(self, ctx: click.Context) -> str:
        """Return click's own, with dots after an option of several values."""
        return super().make_metavar(ctx) + ("..." if self.multiple else "")


class Command(click.Command):
    """A command whose options may stand before, between and after its other arguments.

    Args:
        pairs: take ``KEY VALUE`` pairs for the config, given to the function as the list ``opts``.
            The word ``--opts``, which Detectron2's demo asks for in front of them, is passed over.
        exclusive: names of options of which a call takes one at most.
    """

    def __init__(self, *args: Any, pairs: bool = False, exclusive: Sequence = (), **settings: Any):
        settings.setdefault("context_settings", {"show_default": True})
        super().__init__(*args, **settings)
        self.pairs = pairs
        self.exclusive = exclusive

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the usage line."""
        return [*super().collect_usage_pieces(ctx), *(["[KEY VALUE]..."] if self.pairs else [])]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line after taking the ``KEY VALUE`` pairs out of it."""
        args, pairs = _Arranger(self, ctx).arrange(args)
        rest = super().parse_args(ctx, args)
        for param in self.params:
            if param.multiple:
                ctx.params[param.name] = list(ctx.params[param.name] or ())
        if self.pairs:
            ctx.params["opts"] = pairs
        for names in self.exclusive:
            typed = ParameterSource.COMMANDLINE
            given = [name for name in names if ctx.get_parameter_source(name) is typed]
            if len(given) > 1:
                flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
                raise click.UsageError(f"{flags} exclude each other; give one of them.", ctx)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if self.pairs:
            with formatter.section("KEY VALUE"):
                formatter.write_text(
                    "keys of the config and their new values, anywhere on the line: "
                    "SOLVER.MAX_ITER 900 MODEL.DEVICE cpu"
                )


class _Arranger:
    """Puts a command line in an order that click takes: options, then arguments; pairs apart."""

    def __init__(self, command: Command, ctx: click.Context):
        self.ctx = ctx
        self.pairs = command.pairs
        params = command.get_params(ctx)
        self.only_pairs = not any(isinstance(param, click.Argument) for param in params)
        self.options = {
            name: param
            for param in params
            if isinstance(param, click.Option)
            for name in (*param.opts, *param.secondary_opts)
        }

    def arrange(self, args: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the line for click, and the pairs as one flat list."""
        options, arguments, pairs, rest = [], [], [], deque(args)
        while rest:
            token = rest.popleft()
            name, equals, value = token.partition("=")
            if name in self.options:
                options += self._option(name, [value] if equals else [], rest)
            elif token == "--opts" and self.pairs:
                continue
            elif token == "--":
                (pairs if self.pairs and self.only_pairs else arguments).extend(rest)
                break
            elif self._is_key(token):
                pairs.append(token)
                if rest and not self._is_option(rest[0]):
                    pairs.append(rest.popleft())
            elif token.startswith("-") and token != "-":
                options.append(token)  # unknown: click says which is near
            else:
                arguments.append(token)
        return [*options, "--", *arguments], pairs

    def _option(self, name: str, values: list[str], rest: deque[str]) -> list[str]:
        option = self.options[name]
        if option.is_flag:
            return [name] if not values else [f"{name}={values[0]}"]
        if option.multiple:
            while rest and self._is_value(rest[0]):
                values.append(rest.popleft())
            found = [part for value in values for part in (name, value)]
        else:
            while rest and len(values) < option.nargs and not self._is_option(rest[0]):
                values.append(rest.popleft())
            found = [name, *values]
        if len(values) < option.nargs and not self.ctx.resilient_parsing:
            number = "a value" if option.nargs == 1 else f"{option.nargs} values"
            raise click.BadOptionUsage(name, f"Option '{name}' needs {number}.", self.ctx)
        return found or [name]

    def _is_option(self, token: str) -> bool:
        return token.partition("=")[0] in self.options

    def _is_value(self, token: str) -> bool:
        """Whether a token is one more value of an option that takes several."""
        if token.startswith("-") and token != "-":
            return bool(_NUMBER.fullmatch(token))
        return not (self.pairs and _KEY.fullmatch(token) and not os.path.exists(token))

    def _is_key(self, token: str) -> bool:
        if not self.pairs or token.startswith("-"):
            return False
        return self.only_pairs or bool(_KEY.fullmatch(token) and not os.path.exists(token))


class NamedFile(click.ParamType):
    """Path of a file, or the name of one of the project's."""

    def __init__(self, name: str, names: Callable[[], Sequence[str]]):
        self.name = name
        self.names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list:
        """Offer the names, and files if none of them begins like that."""
        names = [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


command = functools.partial(click.command, cls=Command)


def option(names: str, text: str | None = None, **settings: Any) -> Callable:
    """Make an option.

    Args:
        names: as in ``--min-score --threshold min_score=S``: its flags, the name of its parameter
            if it is another one, and the name of its value in the help.
        text: of the help.
        settings: of :class:`Option`; a default gives the type.
    """
    names, _, metavar = names.partition("=")
    return click.option(*names.split(), cls=Option, metavar=metavar or None, help=text, **settings)


def path(names: str, text: str, **settings: Any) -> Callable:
    """Make an option whose value is a file or a folder."""
    return option(names, text, type=click.Path(), **settings)


def flag(names: str, text: str, **settings: Any) -> Callable:
    """Make an option without a value."""
    return option(names, text, is_flag=True, **settings)


def section(title: str, *options: Callable) -> Callable:
    """Bundle decorators of options under a title of the help; an empty one keeps theirs."""

    def decorate(function: Callable) -> Callable:
        for each in reversed(options):
            function = each(function)
            if title:
                function.__click_params__[-1].section = title
        return function

    return decorate


def config_file(text: str = "Name or path of the config.", **settings: Any) -> Callable:
    """Make the option ``--config-file``."""
    settings = {"default": "", "show_default": False, **settings}
    return option("--config-file=FILE", text, type=NamedFile("config", config_names), **settings)


processes = section(
    "Several GPUs and machines",
    option("--num-gpus=N", "GPUs of each machine.", default=1),
    option("--num-machines=N", "Machines.", default=1),
    option("--machine-rank=N", "Number of this machine.", default=0),
    option(
        "--dist-url=URL",
        "Where processes meet; tcp://HOST:PORT of the first of several machines.",
        default="auto",
    ),
)
