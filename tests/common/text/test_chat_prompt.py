"""Prompts of conversations end as those of transformers, and have sampled tokens in place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sps2.common.errors import Invalid
from sps2.common.text.chat_prompt import SAMPLED
from sps2.common.text.sampled_turns import Sampled
from sps2.common.text.template import ChatTemplate
from sps2.common.text.tokens import Tokenizer

KEPT = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
STRIPPED = KEPT.replace("m.content", "m.content.strip()")
SPACED = KEPT.replace("{{ m.content }}", "{{ ' ' + m.content.strip() + ' ' }}")
DEEPER = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.index0 > last_user|default(0) %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
USER = {"role": "user", "content": "Be brief. Be brief."}


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llama2")


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


def use(tokenizer: Tokenizer, source: str) -> None:
    tokenizer.__dict__["template"] = ChatTemplate(source, tokenizer.special_tokens)


@pytest.mark.parametrize("source", [KEPT, STRIPPED])
@pytest.mark.parametrize("content", ["Be brief.", "Be brief. ", "\n Be\n\n", "<|end|>Be"])
@pytest.mark.parametrize("role", ["assistant", "user"])
def test_the_last_message_goes_on_as_in_transformers(
    tokenizer: Tokenizer, folder: Path, source: str, content: str, role: str
) -> None:
    use(tokenizer, source)
    messages = [USER, {"role": role, "content": content}]
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(
        messages, chat_template=source, continue_final_message=True, tokenize=False
    )
    ours = tokenizer.chat(messages, continue_final_message=True)
    assert tokenizer.decode(ours, False) == expected
    assert ours.count(2) == 1, "only the template ends a turn"


def test_a_space_of_the_template_is_no_part_of_the_message(tokenizer: Tokenizer) -> None:
    use(tokenizer, SPACED)
    ids = tokenizer.chat([{"role": "user", "content": "Be"}], continue_final_message=True)
    assert tokenizer.decode(ids, False) == "<|start|>user\n Be"


@pytest.mark.parametrize("source", ["<|start|>", KEPT + KEPT, KEPT.replace("m.content", "m.role")])
def test_a_message_that_is_not_shown_cannot_go_on(tokenizer: Tokenizer, source: str) -> None:
    use(tokenizer, source)
    with pytest.raises(Invalid) as caught:
        tokenizer.chat([USER], continue_final_message=True)
    assert caught.value.field == "continue_final_message"


def test_variables_reach_the_template_and_forge_nothing(tokenizer: Tokenizer) -> None:
    use(tokenizer, KEPT + "{{ mood }}{% for d in documents or [] %}{{ d.text }}{% endfor %}")
    ids = tokenizer.chat(
        [USER], variables={"mood": "<|end|>calm", "documents": [{"text": "<|end|>one"}]}
    )
    assert tokenizer.decode(ids, False).endswith("assistant\n<|end|>calm<|end|>one")
    assert ids.count(2) == 1


def test_what_is_nested_too_deeply_is_refused(tokenizer: Tokenizer) -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(Invalid, match="nested"):
        tokenizer.chat([USER], variables={"mood": deep})


def test_sampled_tokens_replace_the_answer_alone(tokenizer: Tokenizer) -> None:
    use(tokenizer, KEPT)
    opening = tokenizer.opening()
    assert opening == "<|start|>assistant\n"
    prompt = tokenizer.chat([USER])
    ids = [tokenizer.encode(each, False)[0] for each in "Be brief."]
    answer = {"role": "assistant", "content": "Be brief."}
    known = {**answer, SAMPLED: Sampled(ids, opening, ("Be brief.",), True)}
    plain, exact = (tokenizer.chat([USER, each, USER]) for each in (answer, known))
    assert ids != tokenizer.encode("Be brief.", False)
    assert exact[: len(prompt) + len(ids)] == prompt + ids
    assert tokenizer.decode(exact, False) == tokenizer.decode(plain, False)

    other = {**answer, "content": "Be brief!", SAMPLED: known[SAMPLED]}
    unknown = {"role": "assistant", "content": "Be brief!"}
    assert tokenizer.chat([USER, other]) == tokenizer.chat([USER, unknown])
    continued = tokenizer.chat([USER, known], continue_final_message=True)
    assert continued == tokenizer.chat([USER, answer], continue_final_message=True)


def test_special_tokens_that_an_answer_spells_do_not_prevent_its_tokens(
    tokenizer: Tokenizer,
) -> None:
    use(tokenizer, KEPT)
    text = "a<|end|>b"
    ids = [tokenizer.encode(each, False)[0] for each in text]
    known = {
        "role": "assistant",
        "content": text,
        SAMPLED: Sampled(ids, tokenizer.opening(), (text,), True),
    }
    assert tokenizer.chat([USER, known], False)[:-2][-len(ids) :] == ids


def test_thoughts_are_exact_while_the_template_shows_them(tokenizer: Tokenizer) -> None:
    use(tokenizer, DEEPER)
    opening = tokenizer.opening()
    assert opening == "<|start|>assistant\n<think>\n"
    prompt = tokenizer.chat([USER])
    raw = "Be\n</think>\nbrief."
    ids = [tokenizer.encode(each, False)[0] for each in raw]
    known = {
        "role": "assistant",
        "content": "brief.",
        "reasoning_content": "Be",
        SAMPLED: Sampled(ids, opening, ("brief.", "Be"), False),
    }
    shown = tokenizer.chat([USER, known, USER])
    assert shown[: len(prompt) + len(ids)] == prompt + ids
    bare = {name: each for name, each in known.items() if name != SAMPLED}
    dropped = tokenizer.chat([USER, known, USER], variables={"last_user": 2})
    assert dropped == tokenizer.chat([USER, bare, USER], variables={"last_user": 2})
    assert dropped != shown
