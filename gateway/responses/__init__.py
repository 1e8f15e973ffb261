"""OpenAI's Responses API in front of the chat pipeline: bodies in, items and events out."""
