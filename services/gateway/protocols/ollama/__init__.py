"""Ollama's API: requests become chats and completions, and answers its records."""
