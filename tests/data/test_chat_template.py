"""Chat templates: the text that transformers makes, and nothing that a stranger's template can do to us."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny_tokenizer

from tunescope import bounded
from tunescope.data import chat_template, sandbox
from tunescope.data.chat_template import render_chat
from tunescope.errors import DataError

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What <is> \"it\"? 'π'\n"},
    {"role": "assistant", "content": "That.", "reasoning": "Hm."},
    {"role": "user", "content": "And\tthis? 🙂", "name": None},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"é": {}}}}}]
# What templates of Llama 3, Qwen 3, Gemma, Mistral and SmolLM 3 make use of.
TEMPLATES = {
    "filters": "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: "
    "{{ m.content | trim }}{{ '\\n' }}{% endfor %}",
    "tools": "{% if tools %}{{ tools | tojson(indent=2) }}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}",
    "namespace": "{% set ns = namespace(n=0, text='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.text = ns.text ~ m.role ~ ns.n %}{% endfor %}{{ ns.text }}{{ ns.n * 3 }}{{ '-' * 5 }}",
    "controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 3 %}"
    "{% break %}{% endif %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
    "{{ m.content[:3] }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}{{ eos_token }}",
    "reasoning": "{% for m in messages %}{% if m.reasoning_content is defined %}<think>"
    "{{ m.reasoning_content }}{{ m.thinking }}"
    "</think>{% endif %}{{ m.name is defined }}{% endfor %}",
    "macro": "{% macro turn(m, end='.') %}[{{ m.role }}|"
    "{{ m.content.strip().split('\\n')[-1] }}{{ end }}]{% endmacro %}"
    "{% for m in messages[::-1] %}{{ turn(m, end=loop.index) }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "functions": "{{ strftime_now('%Y') }}{{ dict(a=1) | tojson }}{{ range(3) | list }}{{ '%s-%d' % ('a', 3) }}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ 'a{}b'.format(1) }}"
    "{{ messages[0].content.replace('e', 'ee') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 2 ** 5 }}"
    "{{ 1.5 * 3 }}{{ none }}{{ true }}",
    "white space": "{%- for m in messages -%}\n  "
    "{%- if loop.first %}\n    {{ m.role }}\n  {%- endif %}\n{% endfor %}\n\n end",
    "items": "{% for key, value in messages[0].items() | sort %}{{ key }}={{ value }};{% else %}none{% endfor %}"
    "{% for c in 'abc' %}{{ c }}{{ loop.revindex }}{% endfor %}{{ ('a', 'b') | join }}",
}


def _tokenizer(template: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _expected(tokenizer: Any, messages: Any, tools: Any, generation_prompt: bool) -> str:
    return tokenizer.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=generation_prompt, tokenize=False
    )


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name: str, generation_prompt: bool) -> None:
    tokenizer = _tokenizer(TEMPLATES[name])
    for tools in ([], TOOLS):
        found = render_chat(tokenizer, SAID, generation_prompt=generation_prompt, tools=tools)
        assert found == _expected(tokenizer, SAID, tools, generation_prompt)


def test_a_template_for_tools_is_taken_where_there_are_tools() -> None:
    tokenizer = _tokenizer({"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ tools | length }}"})
    assert render_chat(tokenizer, SAID, generation_prompt=False) == "plain Be brief."
    assert render_chat(tokenizer, SAID, generation_prompt=False, tools=TOOLS) == "tools 1"


@given(
    messages=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=30)}),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(["filters", "namespace", "controls", "generation", "macro"]),
)
def test_any_conversation_is_rendered_as_by_transformers(messages: list[dict[str, Any]], name: str) -> None:
    tokenizer = _tokenizer(TEMPLATES[name])
    found = render_chat(tokenizer, messages, generation_prompt=True)
    assert found == _expected(tokenizer, messages, None, True)


# What never ends, or fills the memory: `messages` has 3 here, so that a trial with fewer turns would not notice.
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in [0, 0, 0] recursive %}{{ loop([0, 0, 0]) if loop.depth < 30 }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling": "{% set n = namespace(t='ab') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "adding": "{% set n = namespace(t='ab') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "adding lists": "{% set n = namespace(t=[1]) %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "squaring": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "product": "{{ 'a' * 10000000000 }}",
    "product of lists": "{{ ([0] * 99999) * 99999 }}",
    "power": "{{ 10 ** 10000000000 }}",
    "width": "{{ 'a' | center(10000000000) }}",
    "width of a method": "{{ 'a'.ljust(10000000000) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "format method": "{{ '{:10000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 10000000000) }}",
    "format filter": "{{ '%10000000000d' | format(1) }}",
    "replace": "{% set t = 'a' * 99999 %}{{ t.replace('a', t) }}",
    "replace filter": "{% set t = 'a' * 99999 %}{{ t | replace('a', t) }}",
    "join": "{% set t = 'a' * 99999 %}{{ range(99999) | join(t) }}",
    "join method": "{% set t = 'a' * 99999 %}{{ t.join(t) }}",
    "nested lists": "{% set n = namespace(t=[1]) %}"
    "{% for i in range(9) %}{% set n.t = [n.t] * 9999 %}{% endfor %}{{ n.t }}",
    "output": "{% set t = 'a' * 9999999 %}{% for i in range(99999) %}{{ t }}{% endfor %}",
    "indent": "{% set t = '\\n' * 999999 %}{{ t | indent(99999999) }}",
    "range": "{{ range(10000000000) | list }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_grows_beyond_bounds_is_refused_within_this_process(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises((sandbox.Unbounded, OverflowError, RecursionError)):
        sandbox.render(BOMBS[name], {"messages": SAID})
    assert time.monotonic() - begin < 15


def test_a_template_is_tried_once_in_a_process_that_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    call = bounded.call

    def watched(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return call(*arguments, **options)

    monkeypatch.setattr(bounded, "call", watched)
    monkeypatch.setattr(chat_template, "_ended", set())
    tokenizer = _tokenizer("{{ messages[0].content }}")
    for _ in range(3):
        assert render_chat(tokenizer, SAID, generation_prompt=True) == "Be brief."
    assert len(calls) == 1
    with pytest.raises(DataError, match=r"does too much: it takes more than \d+ steps, so it is not used"):
        render_chat(_tokenizer(BOMBS["nested loops"]), SAID, generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system turns') }}",
        "{% for m in %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ lipsum(3) }}",
        "{{ 1 // 0 }}",
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_said(template: str) -> None:
    with pytest.raises(DataError, match="chat template refuses these messages"):
        render_chat(_tokenizer(template), SAID, generation_prompt=True)


def test_work_that_never_ends_is_killed() -> None:
    with pytest.raises(bounded.TooMuch, match=r"did not end within 0\.5 s"):
        bounded.call(time.sleep, 60, seconds=0.5)
    with pytest.raises(bounded.TooMuch, match="failed: ValueError"):
        bounded.call(int, "x")
    assert bounded.call(divmod, 7, 2) == [3, 1]
