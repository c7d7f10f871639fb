"""The base class of both plugins, which improves how the Singer SDK handles settings and options."""

from __future__ import annotations

import os
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, ClassVar

import click
from dotenv import find_dotenv, load_dotenv
from singer_sdk.configuration._dict_config import parse_environment_config
from singer_sdk.helpers._classproperty import classproperty
from singer_sdk.plugin_base import JSONSchemaValidator, PluginBase

from pepper_runtime import logs
from pepper_runtime.config import read_config
from pepper_runtime.settings import (
    clean_variables,
    describe_errors,
    find_environment_problems,
    quote,
    read_environment_numbers,
    without_unset,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence


class Plugin(PluginBase):
    """A plugin with clear messages about its settings. No message shows the value of a secret."""

    secrets: ClassVar[frozenset[str]] = frozenset()
    """The settings that no message may quote."""
    show_value: Callable[[object], str] = staticmethod(quote)
    """How a message shows a wrong value of a setting that is not a secret."""
    setting_error: ClassVar[type[Exception]]
    """The error to raise for wrong settings. Its message lists all problems on one line."""
    option_help: ClassVar[dict[str, str]] = {
        "about": "Print the name, the version, the capabilities and the settings.",
        "about_format": "The format of --about. Default: text.",
        "config": "JSON file with the settings; ENV reads them from environment variables.",
    }
    """Help texts for the SDK's options, by parameter. The SDK's own texts are wrong for these plugins, or vague."""

    def __init__(self, *, config: Any = None, parse_env_config: bool = False, **options: Any) -> None:
        """Read and check the settings.

        Args:
            config: The settings. Null means that a setting is not set. An empty string means the same, unless the
                setting's type is text.
            parse_env_config: Also read the settings from environment variables, which override `config`. A `.env` file
                in the working directory, or in a folder above it, supplies variables that the environment lacks.
            options: The SDK's other arguments.
        """
        self.append_builtin_config(self.config_jsonschema)
        self._reads_environment = parse_env_config
        if parse_env_config:
            load_dotenv(find_dotenv(usecwd=True))
            clean_variables(self.config_jsonschema, self._env_var_prefix, os.environ)
            self._raise(
                find_environment_problems(
                    self.config_jsonschema, self._env_var_prefix, os.environ, type(self).show_value
                )
            )
        given = without_unset(self.config_jsonschema, config or {})
        super().__init__(config=given, parse_env_config=parse_env_config, **options)
        for line in self._unknown_settings():
            self.logger.warning("%s", line)

    @classmethod
    def get_singer_command(cls) -> click.Command:
        """Return the command, with `--log-format` and the help texts of this project."""
        command = super().get_singer_command()
        command.help = cls.__doc__
        for option in command.params:
            if isinstance(option, click.Option) and option.name in cls.option_help:
                option.help = cls.option_help[option.name]
        command.params.append(logs.format_option())
        return command

    @classproperty
    def _env_var_config(cls) -> dict[str, Any]:  # noqa: N805
        """The settings in the environment.

        The SDK itself would let a `.env` file in a folder above the installed package override them.
        """
        return parse_environment_config(cls.config_jsonschema, cls._env_var_prefix, dotenv_path=os.devnull)

    @classmethod
    def cb_config(cls, ctx: Any, param: Any, value: tuple[str, ...]) -> Any:
        """Check the files of `--config`, then let the SDK read them. `ENV` instead of a file means the environment."""
        for path in value:
            if path != "ENV":
                read_config(path)
        return super().cb_config(ctx, param, value)

    def find_problems(self) -> list[str]:
        """Return what is wrong with the settings, one line per problem."""
        try:
            errors = JSONSchemaValidator(self.config_jsonschema).iter_errors(self._config)
            return describe_errors(
                errors,
                self.config_jsonschema,
                secrets=self.secrets,
                prefix=self._env_var_prefix,
                show=type(self).show_value,
            )
        except AttributeError:
            # The SDK's JSON Schema of stream maps is invalid. The validator raises this error for a wrong `__else__`.
            return ["stream_maps contains an __else__ that is neither null nor __NULL__"]

    def drops_data(self, stream: str, fields: Collection[str] = ()) -> bool:
        """Return whether a stream map may drop records of a stream, or drop or change one of these fields."""
        maps = self.config.get("stream_maps") or {}
        return any(fnmatch(stream, name) and _drops(definition, set(fields)) for name, definition in maps.items())

    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        if self._reads_environment:
            self._config.update(read_environment_numbers(self.config_jsonschema, self._env_var_prefix, os.environ))
        problems = self.find_problems()
        if raise_errors:
            self._raise(problems)
        return problems

    def _unknown_settings(self) -> Iterator[str]:
        """Yield a warning per unknown setting, and per environment variable that looks like a misspelled setting."""
        known = self.config_jsonschema["properties"]
        for name in sorted(self._config.keys() - known.keys()):
            yield f"{quote(name)} is not a setting and is ignored{_suggestion(name, known)}"
        prefix = self._env_var_prefix
        for variable in sorted(os.environ) if self._reads_environment else ():
            name = variable.removeprefix(prefix).lower()
            # Meltano has its own variables with this prefix, such as TAP_PEPPER__SELECT with two underscores.
            is_own = variable.startswith(prefix) and not name.startswith("_")
            if is_own and name not in known and (near := _suggestion(name, known)):
                yield f"{variable} is not a setting and is ignored{near}"

    def _raise(self, problems: Sequence[str]) -> None:
        if problems:
            raise self.setting_error("; ".join(problems))


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else ""


def _drops(definition: object, fields: set[str]) -> bool:
    """Return whether a stream map's definition may drop records, or drop or change one of these fields."""
    if not isinstance(definition, dict):
        return True
    if "__source__" in definition:
        # The map creates another stream from the records.
        return False
    # `__else__` drops the fields that the definition does not name.
    changed = fields if "__else__" in definition else fields & definition.keys()
    return "__filter__" in definition or any(definition.get(field) != field for field in changed)
