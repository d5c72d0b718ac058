#!/usr/bin/env bash
# The HTTP API with curl:  bash examples/curl.sh [http://127.0.0.1:8000]
# A cluster with keys wants an API key in OPENAI_API_KEY.
set -euo pipefail
url=${1:-http://127.0.0.1:8000}

ask() { # the key is read from a descriptor: arguments can be seen by every user of the machine
    curl --silent --show-error --fail-with-body --no-buffer \
        --header @<(echo "Authorization: Bearer ${OPENAI_API_KEY:-none}") \
        --header "Content-Type: application/json" "$@"
}

echo "# What is served"
ask "$url/v1/models"

printf '\n\n# A completion\n'
ask "$url/v1/completions" --data '{
    "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0
}'

printf '\n\n# A chat as a stream: how far the prompt is read, the answer, what it took\n'
ask "$url/v1/chat/completions" --data '{
    "messages": [{"role": "user", "content": "Name three rivers."}],
    "max_tokens": 16, "temperature": 0,
    "stream": true, "stream_options": {"include_usage": true},
    "sps2": {"progress": true}
}'
