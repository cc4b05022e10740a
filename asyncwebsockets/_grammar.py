"""The pieces of HTTP's grammar that the handshake is written in (RFC 9110 section 5.6)."""

from __future__ import annotations

import re

__all__ = ["is_token", "parse_extension", "split_list"]

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PARAMETER = re.compile(rf"\s*({_TOKEN})(?:\s*=\s*(?:({_TOKEN})|({_QUOTED})))?\s*")


def is_token(text: str) -> bool:
    """Whether the text is a token, as subprotocol and extension names must be."""
    return re.fullmatch(_TOKEN, text) is not None


def split_list(text: str) -> list[str]:
    """Split a field value at its commas, those within quotes excepted; drop empty items."""
    if '"' not in text:
        return [item.strip() for item in text.split(",") if item.strip()]
    # By hand: a regular expression that tries each quote anew takes quadratic time.
    items = []
    start = 0
    quoted = escaped = False
    for position, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            items.append(text[start:position])
            start = position + 1
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def parse_extension(text: str) -> tuple[str, list[tuple[str, str | None]]]:
    """Parse one item of Sec-WebSocket-Extensions (RFC 6455 section 9.1).

    Returns:
        The extension's name and its parameters, a parameter without a value as None.

    Raises:
        ValueError: the text does not follow the grammar.
    """
    parts: list[tuple[str, str | None]] = []
    position = 0
    while True:
        match = _PARAMETER.match(text, position)
        if match is None:
            raise ValueError(f"expected extension parameters, got {text!r}")
        name, token, quoted = match.groups()
        value = re.sub(r"\\(.)", r"\1", quoted[1:-1]) if quoted is not None else token
        if quoted is not None and not is_token(value):
            raise ValueError(f"expected a token within the quotes, got {quoted!r}")
        parts.append((name, value))
        position = match.end()
        if position == len(text):
            break
        if text[position] != ";":
            raise ValueError(f"expected ';' at position {position} of {text!r}")
        position += 1
    (extension, unexpected), *parameters = parts
    if unexpected is not None:
        raise ValueError(f"expected an extension name, got {text!r}")
    return extension, parameters
