"""A batch of chats, by the openai package: upload, wait, read the answers.

    python examples/batch.py [http://127.0.0.1:8000]

A cluster with keys wants an API key in OPENAI_API_KEY.
"""

import json
import os
import sys
import time
from typing import Final

from openai import OpenAI

ENDPOINT: Final = "/v1/chat/completions"
QUESTIONS = {"rivers": "Name three rivers.", "colours": "Name three colours."}
ENDED = ("completed", "failed", "expired", "cancelled")


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": ENDPOINT,
            "body": {
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 16,
                "temperature": 0,
            },
        }
        for name, question in QUESTIONS.items()
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("questions.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    while batch.status not in ENDED:
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    print(batch.status, batch.request_counts)
    if batch.output_file_id:
        for line in client.files.content(batch.output_file_id).text.splitlines():
            result = json.loads(line)
            message = result["response"]["body"]["choices"][0]["message"]
            print(f"{result['custom_id']}: {message['content']}")


if __name__ == "__main__":
    main()
