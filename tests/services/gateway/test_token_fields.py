"""Fields about single tokens and about the chat template, as vLLM has them."""

import itertools
import json
import struct

import httpx
import pytest

from sps2.common.messages import Token

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = {"role": "user", "content": "hi"}
BEGUN = {"role": "assistant", "content": "Hello, "}
END, BEGIN = 256, 257


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http


@pytest.fixture
def ask(http):
    async def ask(**body):
        path = CHAT if "messages" in body else COMPLETIONS
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ask


@pytest.fixture
def refused(http):
    async def refused(**body):
        path = CHAT if "messages" in body else COMPLETIONS
        answer = await http.post(path, json=body)
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]

    return refused


def prompt_of(door):
    sent = door.play.submitted[-1].prompt
    return list(struct.unpack(f"<{len(sent) // 4}i", sent))


def events(text):
    return [json.loads(each[6:]) for each in text.splitlines() if each.startswith("data: {")]


async def test_log_probabilities_of_the_prompt(ask, door):
    entry = {
        "65": {"logprob": -0.25, "rank": 1, "decoded_token": "A"},
        "98": {"logprob": -0.5, "rank": 2, "decoded_token": "b"},
    }
    completion = await ask(prompt="ab", prompt_logprobs=1)
    assert completion["choices"][0]["prompt_logprobs"] == [None, entry]
    assert completion["choices"][0]["logprobs"] is None
    own = await ask(prompt="aA", prompt_logprobs=0, n=2)
    assert [each["prompt_logprobs"] for each in own["choices"]] == [
        [None, {"65": {"logprob": -0.5, "rank": 2, "decoded_token": "A"}}]
    ] * 2
    assert door.play.submitted[-1].sampling.prompt_logprobs == 0
    chat = await ask(messages=[HI], prompt_logprobs=1)
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert "prompt_logprobs" not in await ask(messages=[HI])


async def test_an_echo_keeps_its_own_number_of_alternatives(ask, door):
    answer = await ask(prompt="ab", prompt_logprobs=1, echo=True, logprobs=0)
    assert door.play.submitted[-1].sampling.prompt_logprobs == 1
    assert answer["choices"][0]["logprobs"]["top_logprobs"][1] is None
    assert len(answer["choices"][0]["prompt_logprobs"][1]) == 2


async def test_ids_of_prompt_and_answer(ask, http):
    whole = (await ask(prompt="ab", return_token_ids=True))["choices"][0]
    assert whole["prompt_token_ids"] == [97, 98]
    assert whole["token_ids"] == [*b"Hello, world.", END]
    chat = await ask(messages=[HI], return_token_ids=True)
    assert bytes(chat["prompt_token_ids"]) == b"user:hi\nassistant:"
    assert chat["choices"][0]["token_ids"] == [*b"Hello, world.", END]
    for body in ({"prompt": "ab"}, {"messages": [HI]}):
        path = CHAT if "messages" in body else COMPLETIONS
        answer = await http.post(path, json={**body, "stream": True, "return_token_ids": True})
        chunks = events(answer.text)
        parts = [each for chunk in chunks for each in chunk["choices"]]
        ids = itertools.chain.from_iterable(each.get("token_ids", ()) for each in parts)
        assert [*ids] == [*b"Hello, world.", END]
        with_prompt = [each for each in (*chunks, *parts) if "prompt_token_ids" in each]
        assert len(with_prompt) == 1


async def test_ids_are_of_all_tokens_where_a_stop_string_ends_an_answer(ask):
    answer = await ask(prompt="a", return_token_ids=True, stop=", w")
    assert answer["choices"][0]["text"] == "Hello"
    assert answer["choices"][0]["token_ids"] == [*b"Hello, w"]
    assert answer["usage"]["completion_tokens"] == 8


async def test_tokens_are_named_by_their_ids(ask):
    asked = {"return_tokens_as_token_ids": True, "max_tokens": 1}
    completion = await ask(prompt="a", logprobs=1, echo=True, **asked)
    listed = completion["choices"][0]["logprobs"]
    assert listed["tokens"] == ["token_id:97", "token_id:72"]
    assert set(listed["top_logprobs"][1]) == {"token_id:72"}
    chat = await ask(messages=[HI], logprobs=True, top_logprobs=2, **asked)
    (entry,) = chat["choices"][0]["logprobs"]["content"]
    assert entry["token"] == entry["top_logprobs"][0]["token"] == "token_id:72"
    assert entry["bytes"] == [72]


async def test_a_prompt_is_cut_to_its_last_tokens(ask, refused, door):
    await ask(prompt="abcdef", truncate_prompt_tokens=2)
    assert bytes(prompt_of(door)) == b"ef"
    await ask(prompt=[1, 2, 3], truncate_prompt_tokens=9)
    assert prompt_of(door) == [1, 2, 3]
    answer = await ask(messages=[HI], truncate_prompt_tokens=10)
    assert bytes(prompt_of(door)) == b"assistant:"
    assert answer["usage"]["prompt_tokens"] == 10
    echo = await ask(prompt="abcdef", truncate_prompt_tokens=2, echo=True, max_tokens=1)
    assert echo["choices"][0]["text"] == "efH"

    for prompt in ("x" * 500, [5] * 500):
        await ask(prompt=prompt, truncate_prompt_tokens=-1, max_tokens=30)
        assert len(prompt_of(door)) == 200 - 30
        await ask(prompt=prompt, truncate_prompt_tokens=-1)
        assert len(prompt_of(door)) == 200 - 16
    long = {"role": "user", "content": "x" * 500}
    await ask(messages=[long], truncate_prompt_tokens=-1, max_tokens=30)
    assert len(prompt_of(door)) == 200 - 30
    await ask(messages=[long], truncate_prompt_tokens=-1)
    assert len(prompt_of(door)) == 199
    for asked in ({"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": -2}):
        assert (await refused(prompt="a", **asked))["param"] == "truncate_prompt_tokens"
    fills = {"truncate_prompt_tokens": -1, "max_tokens": 200}
    assert (await refused(prompt="a", **fills))["param"] == "truncate_prompt_tokens"
    error = await refused(prompt="x" * 500, truncate_prompt_tokens=300)
    assert error["code"] == "context_length_exceeded"


async def test_stop_strings_and_tokens_in_the_text(ask):
    shown = {"include_stop_str_in_output": True}
    answer = await ask(prompt="a", stop=", w", **shown)
    assert answer["choices"][0]["text"] == "Hello, w"
    assert answer["choices"][0]["finish_reason"] == "stop"
    answer = await ask(messages=[HI], stop_token_ids=[ord(",")], **shown)
    assert answer["choices"][0]["message"]["content"] == "Hello,"
    assert (await ask(prompt="a", **shown))["choices"][0]["text"] == "Hello, world."
    special = {"skip_special_tokens": False}
    assert (await ask(prompt="a", **special))["choices"][0]["text"] == "Hello, world."
    both = await ask(prompt="a", **shown, **special)
    assert both["choices"][0]["text"] == "Hello, world.<|end|>"


async def test_special_tokens_in_the_text(ask, door, monkeypatch):
    tokens = [Token(0, 72), Token(1, BEGIN), Token(2, 105), Token(3, END, finish="stop")]
    monkeypatch.setattr(door.play, "tokens", lambda submit: tokens)
    for skips, text in ((True, "Hi"), (None, "Hi"), (False, "H<|begin|>i")):
        answer = await ask(messages=[HI], skip_special_tokens=skips)
        assert answer["choices"][0]["message"]["content"] == text


async def test_only_some_tokens_may_be_drawn(ask, refused, door):
    await ask(prompt="a", allowed_token_ids=[5, 7, 5], bad_words=["no", " ab", "x"])
    sampling = door.play.submitted[-1].sampling
    assert sampling.allowed_token_ids == (5, 7)
    assert sampling.bad_words == ((110, 111), (97, 98), (120,))
    wrong: list[dict[str, object]] = [
        {"allowed_token_ids": [999]},
        {"allowed_token_ids": []},
        {"allowed_token_ids": [120], "bad_words": ["x"]},
        {"allowed_token_ids": [END], "min_tokens": 1},
    ]
    for body in wrong:
        assert (await refused(prompt="a", **body))["param"] == "allowed_token_ids"
    for words in ([" "], [""], ["x"] * 300, ["x" * 300]):
        assert (await refused(prompt="a", bad_words=words))["param"].startswith("bad_words")


async def test_a_prompt_without_the_tokens_around_it(ask, http, door, monkeypatch):
    tokenizer = door.parts.gateway._tokenizer

    def encode(text, special=True, **how):
        return [*([BEGIN] if special else []), *text.encode()]

    monkeypatch.setattr(tokenizer, "encode", encode)
    for special, ids in ((False, [97]), (None, [BEGIN, 97]), (True, [BEGIN, 97])):
        await ask(prompt="a", add_special_tokens=special)
        assert prompt_of(door) == ids
    chat = await http.post(CHAT, json={"messages": [HI], "add_special_tokens": True})
    assert chat.json()["error"]["param"] == "add_special_tokens"


async def test_a_conversation_ends_as_it_is_asked_to(ask, http, door):
    async def ends(*messages, **how):
        await ask(messages=[HI, *messages], **how)
        tokens = (await http.post("/tokenize", json={"messages": [HI, *messages], **how})).json()[
            "tokens"
        ]
        assert tokens == prompt_of(door)
        return bytes(tokens).decode().removeprefix("user:hi\n")

    assert await ends(add_generation_prompt=False) == ""
    assert await ends(BEGUN) == "assistant:Hello, \nassistant:"
    assert await ends(BEGUN, continue_final_message=True) == "assistant:Hello, "
    closed = {"add_generation_prompt": False, "continue_final_message": True}
    assert await ends(BEGUN, **closed) == "assistant:Hello, "
    assert await ends(HI, continue_final_message=True) == "user:hi"


async def test_a_text_is_no_conversation(http):
    for field, value in (("continue_final_message", True), ("documents", [{"text": "a"}])):
        answer = await http.post("/tokenize", json={"prompt": "a", field: value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field


async def test_what_cannot_be_continued(refused):
    for last, more in (
        (BEGUN, {"add_generation_prompt": True}),
        ({"role": "assistant", "content": " "}, {}),
        ({"role": "assistant"}, {}),
    ):
        error = await refused(messages=[HI, last], continue_final_message=True, **more)
        assert error["param"] == "continue_final_message"


async def test_any_name_can_be_a_variable_of_the_template(ask):
    names = ("self", "most", "template", "variables", "with_tools", "bos_token", "1 b", "")
    await ask(messages=[HI], chat_template_kwargs=dict.fromkeys(names, 1))


async def test_what_a_template_is_given_is_bounded(refused):
    wrong: list[dict[str, object]] = [{"messages": []}, {"tools": []}, {"a": "x" * 70_000}]
    for variables in wrong:
        error = await refused(messages=[HI], chat_template_kwargs=variables)
        assert error["param"] == "chat_template_kwargs"
    assert (await refused(messages=[HI], documents="x"))["param"] == "documents"
