"""The HTTP application over an engine: OpenAI's wire format, a queue, a guard at the door and a chat page."""
