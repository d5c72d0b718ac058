"""OpenAI's Responses API: translated to chats and back, and the store of its responses."""
