"""Protocols beside OpenAI's chats and completions: each a folder, translated to chats and back."""
