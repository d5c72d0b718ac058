"""instructor: pydantic models as answers, by schemas and by tools, at once and in parts."""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from served import model_of

QUESTION = {"role": "user", "content": "The largest city of France."}


class City(BaseModel):
    name: str = Field(max_length=20)
    size: Literal["small", "large"]


def main(url: str) -> None:
    model = model_of(url)
    openai = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT):
        client = instructor.from_openai(openai, mode=mode)
        asked = {"model": model, "messages": [QUESTION], "max_tokens": 200, "max_retries": 0}
        city = client.chat.completions.create(response_model=City, **asked)
        assert isinstance(city, City), mode
        parts = list(client.chat.completions.create_partial(response_model=City, **asked))
        assert parts[-1].size in ("small", "large"), mode


if __name__ == "__main__":
    main(sys.argv[1])
    print("ok")
