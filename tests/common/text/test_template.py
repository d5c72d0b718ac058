"""Chat templates render as in transformers, and cannot hurt."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sps2.common.errors import Invalid
from sps2.common.text.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "Grüße <b>&</b>"}, {"role": "assistant", "content": "Hi"}]
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n  {% if loop.first %}[{{ m.role }}]{% endif %}\n"
    "  {{ m['content'] | trim }}{% endfor %}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ tools is none }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}"
    "{% endfor %}{{ ns.count }}{% if add_generation_prompt %}>{% endif %}{{ mood }}",
    "{{ strftime_now('%Y') }}{{ messages[0].content.split(' ')[-1] }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_equals_transformers(source: str, prompt: bool) -> None:
    variables: dict[str, Any] = {"bos_token": "<s>", "mood": "good"}
    rendered, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=prompt, **variables
    )
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template.render(MESSAGES, prompt, {"mood": "good"}) == rendered[0]


def test_refusals_are_the_callers_fault() -> None:
    alternate = "{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}"
    with pytest.raises(Invalid, match="users first") as caught:
        ChatTemplate(alternate, {}).render([{"role": "assistant", "content": ""}])
    assert caught.value.field == "messages"
    with pytest.raises(Invalid, match="refuses these messages"):
        ChatTemplate("{{ 'a' + messages[0].content }}", {}).render([{"content": ["list"]}])


def test_broken_template() -> None:
    with pytest.raises(Invalid, match="template is broken"):
        ChatTemplate("{% for %}", {}).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% for i in range(10000000000) %}{% endfor %}",
    ],
)
def test_sandbox(source: str) -> None:
    with pytest.raises(Invalid, match="refuses"):
        ChatTemplate(source, {}).render(MESSAGES)
