from __future__ import annotations

import builtins
from typing import Any

import pytest
from chat_templates import BOS, EOS, TEMPLATES, make_tokenizer
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

from kani_lite import AIFunction, ChatMessage, ToolCall
from kani_lite.exceptions import EngineError, MissingModelDependencies, PromptError
from kani_lite.messages import ReasoningPart
from kani_lite.prompts import jinja
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.prompts.jinja import JinjaChatTemplate, chat_environment, require_jinja

HI = [{"role": "user", "content": "hi"}]


def get_weather(city: str, days: int = 1) -> str:
    """The weather <of> a city & more."""
    return city


CALLS = [ToolCall.from_function("get_weather", city="Köln <3", days=2), ToolCall.from_function("get_weather", city="X")]
CHAT = [
    ChatMessage.system("Be brief."),
    ChatMessage.user(" What's the weather? \n"),
    ChatMessage.assistant([ReasoningPart(content="I look."), "Let me see."], tool_calls=CALLS),
    ChatMessage.function("get_weather", '{"rain": true}', CALLS[0].id),
    ChatMessage.function("get_weather", "sun & <wind>", CALLS[1].id),
    ChatMessage.assistant([ReasoningPart(content="Easy."), "Rain."]),
    ChatMessage.user("Thanks"),
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("functions", [None, [AIFunction(get_weather)]], ids=["chat", "tools"])
def test_it_renders_what_transformers_renders(name: str, functions: Any) -> None:
    template = TEMPLATES[name]
    ours = ChatTemplatePromptPipeline(JinjaChatTemplate(template, bos_token=BOS, eos_token=EOS))
    theirs = ChatTemplatePromptPipeline(make_tokenizer(template))
    for end in range(1, len(CHAT) + 1):
        for generate in (True, False):
            assert ours(CHAT[:end], functions, generate) == theirs(CHAT[:end], functions, generate)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("  {% if true %}\nx\n{% endif %}\ny", "x\ny"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ {'b': 2, 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":1,"b":2}'),
        ("{{ {'a': 'é'} | tojson(ensure_ascii=true, indent=1) }}", '{\n "a": "\\u00e9"\n}'),
        ("{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}", "1"),
        ("{{ strftime_now('%%') }}", "%"),
        ("{% set n = namespace(a=1) %}{% for i in [1, 2] %}{% set n.a = n.a + i %}{% endfor %}{{ n.a }}", "4"),
        ("{{ dict(a=1)['a'] }}{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 2 * 3 }}", "1ababab10246"),
        ("{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ tools is none }}{{ documents is none }}", "<s></s>UTrueTrue"),
        ("{{ thinking }}{{ messages | length }}{{ add_generation_prompt }}", "yes1True"),
        ("{% macro m(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call m(1) %}c{% endcall %}", "[1c]"),
        ("{% for i in range(3) %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}", None),
    ],
)
def test_templates_have_what_transformers_gives_them(template: str, expected: str | None) -> None:
    ours = JinjaChatTemplate(template, bos_token=BOS, eos_token=EOS, unk_token="U")
    theirs = make_tokenizer(template)
    theirs.unk_token = "U"
    rendered = ours.render(HI, thinking="yes")
    assert rendered == theirs.apply_chat_template(HI, tokenize=False, add_generation_prompt=True, thinking="yes")
    assert expected is None or rendered == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'] }}",
        "{{ dict.__globals__.x }}",
        "{{ namespace.__init__.__globals__ }}{{ namespace.__init__.x }}",
        "{{ (messages | attr('__class__')).x }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ dict.update(messages[0], {'role': 'x'}) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context.x.y }}",
        "{{ joiner.__init__.__globals__.os }}",
        "{{ 'x' * 100000000 }}",
        "{{ 100000000 * [0] }}",
        "{{ 9 ** 999999 }}",
        "{{ messages | length * (2 ** 999999) * (2 ** 999999) }}",
        "{{ range(10000000) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_nothing_but_its_variables(template: str) -> None:
    messages = [dict(m) for m in HI]
    with pytest.raises((SecurityError, UndefinedError, OverflowError, TypeError, TemplateError)):
        JinjaChatTemplate(template).render(messages)
    assert messages == HI


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for x in [1] recursive %}{% for y in range(9999) %}{{ loop([1]) if y < 0 }}{% endfor %}"
        "{% for z in range(9999) %}{% for w in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_runs_on_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "MOST_STEPS", 100_000)
    endless = JinjaChatTemplate(template)
    with pytest.raises(PromptError, match="took more than 100,000 steps, and was stopped"):
        endless.render(HI)
    with pytest.raises(PromptError, match="was stopped"):
        ChatTemplatePromptPipeline(endless)([ChatMessage.user("hi")])
    assert JinjaChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").render(HI) == "hi"


def test_a_text_that_is_no_template() -> None:
    with pytest.raises(PromptError, match=r"its line 2 can't be read: .*unknown tag 'iff'"):
        JinjaChatTemplate("{{ 1 }}\n{% iff %}")


def test_it_has_no_tokens() -> None:
    with pytest.raises(ValueError, match="tokenize=True"):
        JinjaChatTemplate("{{ 1 }}").apply_chat_template(HI, tokenize=True)


def test_another_template_for_one_rendering() -> None:
    assert JinjaChatTemplate("a").apply_chat_template(HI, chat_template="b") == "b"


def test_jinja_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("jinja2", "transformers"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    chat_environment.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingModelDependencies, match=r"kani-lite\[jinja\]"):
        JinjaChatTemplate("never seen before")
    with pytest.raises(MissingModelDependencies, match=r"kani-lite\[jinja\]"):
        require_jinja()
    with pytest.raises(MissingModelDependencies, match=r"kani-lite\[huggingface\]"):
        ChatTemplatePromptPipeline.from_pretrained("x/y")


def test_no_template_at_all() -> None:
    with pytest.raises(EngineError, match=r"has no chat template: pass .* one of the names alpaca, chatml"):
        ChatTemplatePromptPipeline(make_tokenizer(None))
