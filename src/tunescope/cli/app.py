"""The application: its commands are loaded when they are called, so that help is there at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

from tunescope.commands import BANK, COMMANDS, Listed

_ABOUT = "Customize a language model by every method, measure what each buys on your data, and take the right one."


class Commands(click.Group):
    """Commands by name, of which none is imported before it is called.

    Args:
        name: of the group.
        listed: what there is, with a line of help for each.
        text: help of the group.
        groups: groups within it.
    """

    def __init__(
        self, name: str, listed: Mapping[str, Listed], text: str, groups: tuple[click.Group, ...] = ()
    ) -> None:
        super().__init__(name, help=text, no_args_is_help=True)
        self.listed = listed
        for group in groups:
            self.add_command(group)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All, in the order in which one uses them."""
        return list(self.listed)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; click answers None with the nearest names."""
        if cmd_name in self.commands or cmd_name not in self.listed:
            return self.commands.get(cmd_name)
        from tunescope.cli.flags import SettingsCommand

        module, _, attribute = self.listed[cmd_name].path.partition(":")
        return SettingsCommand(cmd_name, getattr(import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A line a command, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.summary) for name, each in self.listed.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but for the names that an unknown one is compared with: none of them is loaded yet."""
        if args[0] not in self.listed and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=self.listed, ctx=ctx)
        return super().resolve_command(ctx, args)


class Methods(click.Group):
    """``train`` and ``train-tasks``: a command for each method, and for each composition of them.

    Args:
        name: of the group, which is that of the command whose method they fix.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, help=COMMANDS[name].summary, no_args_is_help=True)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The methods, in the order of the spectrum."""
        from tunescope.methods.registry import METHODS

        return METHODS.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command that trains this method.

        Raises:
            UnknownNameError: with the nearest names.
        """
        from tunescope.cli.flags import SettingsCommand
        from tunescope.commands import request
        from tunescope.methods.registry import METHODS

        method = METHODS.load(cmd_name)
        settings = request(str(self.name))
        return SettingsCommand(cmd_name, settings, {"method": cmd_name}, text=(method.__doc__ or "").strip())


def build_app() -> click.Group:
    """The application."""
    bank = Commands("bank", BANK, COMMANDS["bank"].summary)
    return Commands("tunescope", COMMANDS, _ABOUT, (Methods("train"), Methods("train-tasks"), bank))
