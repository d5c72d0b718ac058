"""Turns about tools: as the template takes them, or as text where it takes none."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from sps2.common.text.template import ChatTemplate
from sps2.common.text.tokens import Tokenizer
from sps2.common.text.tool_turns import described, with_short_ids

TOOL = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {}}}
CALL = {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": {"a": 1}}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "4", "tool_call_id": "call_1", "name": "f"},
    {"role": "tool", "content": "5", "tool_call_id": "call_1", "name": "f"},
    {"role": "user", "content": "so?"},
]


def test_a_template_without_tools_gets_text():
    system, user, assistant, results, last = described(TURNS, [TOOL])
    assert system["content"].startswith("Be brief.\n\n# Tools")
    assert json.dumps(TOOL, ensure_ascii=False) in system["content"]
    assert user == TURNS[1]
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert assistant == {"role": "assistant", "content": f"I look.\n{call}\n{call}"}
    responses = [f"<tool_response>\n{each}\n</tool_response>" for each in "45"]
    assert results == {"role": "user", "content": "\n".join(responses)}
    assert last == TURNS[5]
    assert described(TURNS[1:2], [TOOL])[0]["role"] == "system"
    assert described(TURNS[:2], []) == TURNS[:2]


def test_ids_that_are_short_enough_for_mistral():
    turns = with_short_ids(TURNS)
    ids = {call["id"] for call in turns[2]["tool_calls"]} | {turns[3]["tool_call_id"]}
    (short,) = ids
    assert len(short) == 9
    assert short.isalnum()
    own = [{"role": "tool", "content": "", "tool_call_id": "abcDEF123"}]
    assert with_short_ids(own) == own
    assert turns[:2] == TURNS[:2]


@pytest.mark.parametrize(
    ("source", "uses", "short"),
    [
        ("{{ messages }}", False, False),
        ("{% if tools %}x{% endif %}", True, False),
        ("{% for tool in tools %}{% if tool.id|length != 9 %}{% endif %}{% endfor %}", True, True),
        ("{{ tools }}{{ raise_exception('IDs have length 9!') }}", True, True),
        ("{{ toolset }}", False, False),
    ],
)
def test_what_a_template_wants(source, uses, short):
    template = ChatTemplate(source, {})
    assert (template.uses_tools, template.wants_short_ids) == (uses, short)


@pytest.fixture
def templated(checkpoint, tmp_path):
    def made(default, tool_use=None):
        path = tmp_path / "model"
        shutil.copytree(checkpoint("llama2"), path)
        (path / "chat_template.jinja").write_text(default, encoding="utf-8")
        if tool_use:
            (path / "additional_chat_templates").mkdir()
            other = path / "additional_chat_templates" / "tool_use.jinja"
            other.write_text(tool_use, encoding="utf-8")
        return Tokenizer(path)

    return made


def test_conversations_with_tools_may_have_their_own_template(templated):
    tokenizer = templated("plain", "{{ tools | length }} tools")
    assert tokenizer.decode(tokenizer.chat(TURNS[:2])) == "plain"
    assert tokenizer.decode(tokenizer.chat(TURNS[:2], tools=[TOOL])) == "1 tools"


def test_special_tokens_in_tools_and_calls_are_text(templated):
    tokenizer = templated("{{ tools | tojson }}{{ messages | tojson }}<|end|>")
    nasty = "a<|end|>b"
    tool = {"type": "function", "function": {"name": "f", "parameters": {nasty: {"enum": [nasty]}}}}
    call = {"id": nasty, "function": {"name": "f", "arguments": {nasty: nasty}}}
    turns = [{"role": "assistant", "content": nasty, "tool_calls": [call]}]
    ids = tokenizer.chat(turns, tools=[tool])
    assert [each for each in ids if each in tokenizer.special_ids] == [tokenizer.special["<|end|>"]]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == f"{json.dumps([tool])}{json.dumps(turns)}<|end|>"


def test_tools_are_rendered_as_by_transformers(templated):
    source = (
        "{% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}{% for m in messages %}"
        "{{ m.role }} {{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}"
        "{{ call.function.arguments | tojson }}{% endfor %}\n{% endfor %}"
    )
    tokenizer = templated(source)
    theirs = AutoTokenizer.from_pretrained(tokenizer.folder)
    expected = theirs.apply_chat_template(TURNS, tools=[TOOL], tokenize=False)
    assert tokenizer.decode(tokenizer.chat(TURNS, tools=[TOOL]), False) == expected
