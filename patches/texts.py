"""What a user wrote, in an error: enough of it to know it again."""

SHOWN = 100  # characters


def shown(text: str, most: int = SHOWN) -> str:
    """`text`, or only its beginning where it is long."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
