"""YAML files: read strictly, with messages that name the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml

from tunescope.data.mixture import Mixture, Task
from tunescope.errors import SettingError, TunescopeError
from tunescope.settings import Settings

_S = TypeVar("_S", bound=Settings)


def read_yaml(file: Path) -> Any:
    """What a file holds.

    Raises:
        TunescopeError: no file, no text, no YAML, or a key that is given twice.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise TunescopeError(f"There is no file {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TunescopeError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise TunescopeError(f"{file},{where} is not valid YAML: {getattr(error, 'problem', None) or error}.") from None


def mapping(value: Any, what: str, example: str) -> dict[Any, Any]:
    """A value that must be keys with values, one at least.

    Raises:
        TunescopeError: it is something else.
    """
    if not isinstance(value, dict) or not value:
        raise TunescopeError(f"{what}: expected keys with values, as in {example}")
    return value


def read_mixture(file: Path) -> Mixture:
    """The mixture that a file says.

    Raises:
        TunescopeError: naming the file, and the task where it is one's.
    """
    content = mapping(read_yaml(file), str(file), "tasks: {topics: {data: rows.csv}}")
    tasks, general = content.get("tasks"), content.get("general")
    named = [*(tasks.items() if isinstance(tasks, dict) else ()), *([("general", general)] if general else ())]
    for name, task in named:
        _parsed(f"{file}, {name}", Task, task)
    return _parsed(str(file), Mixture, content)


def _parsed(where: str, kind: type[_S], values: Any) -> _S:
    if not isinstance(values, dict):
        raise TunescopeError(f"{where}: expected keys with values, as in data: rows.csv")
    try:
        return kind.parse(values)
    except SettingError as error:
        raise TunescopeError(f"{where}: {error.field}: {error.reason}.") from None
    except TunescopeError as error:
        raise TunescopeError(f"{where}: {str(error).removeprefix(f'{kind.__name__}: ')}") from None


class _Loader(yaml.SafeLoader):
    """YAML without objects, in which a key given twice is an error."""


def _unique(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique)
