"""Messages over a stream: eight bytes that hold the length, then the message."""

from __future__ import annotations

HEADER_BYTES = 8


def frame(message: bytes) -> bytes:
    """A message as it is sent."""
    return len(message).to_bytes(HEADER_BYTES, "big") + message


def take_messages(received: bytearray) -> list[bytes]:
    """The whole messages at the start of what was received, which are taken off it."""
    messages = []
    while len(received) >= HEADER_BYTES:
        end = HEADER_BYTES + int.from_bytes(received[:HEADER_BYTES], "big")
        if len(received) < end:
            break
        messages.append(bytes(received[HEADER_BYTES:end]))
        del received[:end]
    return messages
