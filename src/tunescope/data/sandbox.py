"""Chat templates that strangers wrote, rendered within bounds.

The environment is the one that transformers gives them (immutable sandbox, its filters and functions), so the text is
the same. In addition a rendering has a budget: every turn of a loop, call of a macro and character that is made costs
something, and what would grow beyond all bounds in one step is refused before it is made.
"""

from __future__ import annotations

import functools
import json
import re
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Far more than a conversation that fills a context of a million tokens takes, and a few seconds at the worst.
_STEPS = 200_000
_CHARACTERS = 64 << 20
_CHARACTERS_A_STEP = 1000
_CHARACTERS_AN_ELEMENT = 100  # a list's elements count more than a text's characters
_NUMBER = 100_000  # the highest width or count that a function may be called with; jinja's own bound of range
_WIDE = ("center", "ljust", "rjust", "zfill", "batch", "slice", "round")
_WIDE_FORMAT = re.compile(r"%(\([^)]*\))?[-+ #0]*(\d{5,}|\*|\d*\.(\d{5,}|\*))")


class Unbounded(jinja2.TemplateError):
    """A template that does more than any conversation needs."""


class _Left(threading.local):
    steps = _STEPS


_left = _Left()


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of ``variables``.

    Raises:
        jinja2.TemplateError: the template is broken, refuses what it is given, or does too much (``Unbounded``).
    """
    with _budget():
        made, pieces = 0, []
        for piece in _compiled(source).generate(**variables):
            made += len(piece)
            if made > _CHARACTERS:
                raise Unbounded(f"it writes more than {_CHARACTERS} characters")
            pieces.append(piece)
        return "".join(pieces)


def excess(source: str, variables: Mapping[str, Any]) -> str | None:
    """Render once and forget the text: in words what the template does too much of, if it does."""
    try:
        render(source, variables)
    except Unbounded as error:
        return str(error)
    except Exception:  # whatever else the template leads jinja to: it will be said where it is rendered
        return None
    return None


@contextmanager
def _budget() -> Iterator[None]:
    before, _left.steps = _left.steps, _STEPS
    try:
        yield
    finally:
        _left.steps = before


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    environment = _Environment()
    tree = _Counting().visit(environment.parse(source))
    return environment.template_class.from_code(environment, environment.compile(tree), environment.globals)


class _Counting(NodeTransformer):
    """Has loops and macros count their turns, and joined texts their length."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return _call("sized", self.generic_visit(node), node.lineno)

    def _counted(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", None, node.lineno), lineno=node.lineno))
        return node


def _call(name: str, argument: nodes.Node | None, line: int) -> nodes.Node:
    arguments = [] if argument is None else [argument]
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None).set_lineno(line)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant says; it is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=lambda value: value if isinstance(value, str) else self.sized(value),
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(function, name) for name, function in self.filters.items()}
        del self.globals["lipsum"]  # random text
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def tick(self, steps: int = 1) -> str:
        """Take ``steps`` from the budget."""
        _left.steps -= steps
        if _left.steps < 0:
            raise Unbounded(f"it takes more than {_STEPS} steps")
        return ""

    def sized(self, value: Any) -> Any:
        """The value, after its size was taken from the budget."""
        self.tick(1 + _size(value) // _CHARACTERS_A_STEP)
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            sequence = isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)
            _check(_length(left) * _length(right) < _CHARACTERS if sequence else max(abs(left), abs(right)) < 1 << 64)
        elif operator == "**":
            _check(abs(right) <= 64 and abs(left) < 1 << 64)
        elif operator == "%" and isinstance(left, str):
            _check(not _WIDE_FORMAT.search(left))
        return self.sized(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            for _text, _field, form, _conversion in string.Formatter().parse(value.__self__):
                _check(not form or not ("{" in form or re.search(r"\d{5,}", form)))
        return wrapped

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        subject = getattr(__obj, "__self__", None)
        if isinstance(subject, str):
            _check_growth(__obj.__name__, subject, args, kwargs)
        found = super().call(__context, __obj, *args, **kwargs)
        return __self.sized(found) if isinstance(found, str | list | tuple) else found


def _bounded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter that checks what it is given before it works."""
    given_first = hasattr(function, "jinja_pass_arg")  # then the context comes before the value

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        subject, *more = args[1:] if given_first else args
        if name == "join" and not isinstance(subject, str):
            subject = [*subject]
            args = (args[0], subject, *more) if given_first else (subject, *more)
        _check_growth(name, subject, more, kwargs)
        return function(*args, **kwargs)

    return checked


def _check_growth(name: str, subject: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse what makes a long text of short ones in one step."""
    values = [*args, *kwargs.values()]
    longest = max((len(value) for value in values if isinstance(value, str)), default=0)
    highest = max((abs(value) for value in values if isinstance(value, int)), default=0)
    if name in ("replace", "translate"):
        _check((len(str(subject)) + 1) * max(longest, 1) < _CHARACTERS or str(args[0]) not in str(subject))
    elif name == "join":
        items = [*args[0]] if isinstance(subject, str) and args else [*subject]
        between = len(subject) if isinstance(subject, str) else longest
        _check(sum(map(_size, items)) + len(items) * between < _CHARACTERS)
    elif name in _WIDE:
        _check(highest <= _NUMBER)
    elif name in ("indent", "wordwrap", "expandtabs"):
        _check((str(subject).count("\n") + str(subject).count("\t") + 1) * max(highest, longest) < _CHARACTERS)
    elif name == "format":
        _check(not _WIDE_FORMAT.search(str(subject)))
    elif name in ("tojson", "string", "pprint", "xmlattr", "urlencode"):
        _check(_size(subject) * (1 + highest + longest) < _CHARACTERS)


def _check(small: bool) -> None:
    if not small:
        raise Unbounded("it makes a text or a number that is too large")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else abs(int(value))


def _size(value: Any) -> int:
    """Characters of a value, those of its elements included; counting ends where they are too many."""
    size, todo = 0, [value]
    while todo:
        each = todo.pop()
        inner = [*each, *each.values()] if isinstance(each, dict) else each if isinstance(each, list | tuple) else ()
        size += len(each) if isinstance(each, str) else 1 + len(inner) * _CHARACTERS_AN_ELEMENT
        _check(size <= _CHARACTERS)
        todo += inner
    return size


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own escapes what HTML would read
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """``dict`` without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As ``dict.fromkeys``."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that holds no name with an underscore before it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may have an attribute called self
        own, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(own, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")
