"""What the context allows."""

import pytest

from sps2.common.errors import Invalid
from sps2.services.gateway.limits import Limit


def test_too_many_tokens_are_refused_or_cut():
    limit = Limit(200, 500, 16, "messages")
    for prompt, field in ((150, "max_tokens"), (200, "messages")):
        with pytest.raises(Invalid) as caught:
            limit.room(prompt)
        assert (caught.value.field, caught.value.code) == (field, "context_length_exceeded")
    assert not limit.open_ended

    cut = limit._replace(cut_answer=True)
    assert cut.room(150) == 50
    assert cut._replace(max_tokens=20).room(150) == 20
    assert cut.open_ended
    with pytest.raises(Invalid) as caught:
        cut.room(200)
    assert caught.value.field == "messages"


def test_the_default_is_at_most_what_is_left():
    limit = Limit(200, None, 16, "prompt")
    assert (limit.room(100), limit.room(190)) == (16, 10)
    assert limit.open_ended
