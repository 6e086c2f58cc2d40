"""The size of raw images that an exported model takes."""

ANY = "any"
LARGEST_SIDE = 8192


def read_size(text):
    """Reads --raw_image_size: `None` for converted images, `ANY`, or (height, width)."""
    if text in (None, ANY):
        return text
    sides = text.split(",")
    if len(sides) != 2 or not all(
        side.isdecimal() and 1 <= int(side) <= LARGEST_SIDE for side in sides
    ):
        raise ValueError(
            f"--raw_image_size must be HEIGHT,WIDTH, each from 1 to {LARGEST_SIDE} pixels, such as "
            f"480,640. Received: {text}"
        )
    return tuple(map(int, sides))
