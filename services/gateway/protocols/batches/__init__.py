"""OpenAI's files and batches: requests that are answered when there is room."""
