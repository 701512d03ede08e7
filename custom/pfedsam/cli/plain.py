"""Text for a terminal: names of files may hold anything, and a control character can rewrite what is shown."""


def plain(text: str) -> str:
    """`text` with control characters, and what no terminal can show, as escapes; line breaks stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
