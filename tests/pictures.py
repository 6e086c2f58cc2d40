"""Image files as people have them: what they look like, or why they cannot be read."""

import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps


def write_good(folder):
    """{path: expected pixels (24, 36, 3), and how many levels the reader may be off}"""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 36, 3), "uint8")
    smooth = (
        np.linspace([200, 30, 10], [10, 90, 250], 36).round().astype("uint8")[None].repeat(24, 0)
    )
    deep = rng.integers(0, 65536, (24, 36), "uint16")
    deep_colors = rng.integers(0, 65536, (24, 36, 3), "uint16")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown rotated by 90 degrees
    red = np.full((24, 36, 3), (200, 30, 10), "uint8")
    frames = [Image.fromarray(frame) for frame in (red, noise)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(deep).save(folder / "gray_of_16_bits.png")
    (folder / "colors_of_16_bits.png").write_bytes(png(deep_colors.astype(">u2"), bits=16))
    Image.fromarray(smooth).convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    upright = Image.fromarray(np.rot90(smooth).copy())
    upright.save(folder / "rotated.jpg", quality=100, exif=turned)
    Image.fromarray(noise).save(folder / os.fsdecode(b"caf\xe9.png"))  # Latin-1, not UTF-8
    return {
        folder / "animated.gif": (red, 0),
        folder / "gray_of_16_bits.png": ((deep / 257)[..., None].repeat(3, -1), 0.5),
        folder / "colors_of_16_bits.png": (deep_colors / 257, 1),
        folder / "cmyk.jpg": (smooth, 6),
        folder / "rotated.jpg": (smooth, 6),
        folder / os.fsdecode(b"caf\xe9.png"): (noise, 0),
    }


def write_broken(folder):
    """{path: the error}. The last one is a directory, which a listing of files leaves out."""
    file = folder / "cut.jpg"
    Image.new("RGB", (64, 64), "red").save(file, quality=100)
    file.write_bytes(file.read_bytes()[:-100])
    (folder / "huge.png").write_bytes(png(np.zeros((30, 30, 3), "uint8"), claimed=(30_000, 30_000)))
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to(folder / "nowhere")
    (folder / "directory.jpg").mkdir()
    return {
        file: f"{file} is truncated or damaged. Copy it again. OSError: {_reason(file)}",
        folder / "huge.png": f"{folder}/huge.png is too large to open safely. Resize it first. "
        "Image size (900000000 pixels) exceeds limit of 178956970 pixels, could be decompression "
        "bomb DOS attack.",
        folder
        / "empty.jpg": f"{folder}/empty.jpg is not an image that Pillow can read. Convert it "
        "to JPEG or PNG.",
        folder / "text.jpg": f"{folder}/text.jpg is not an image that Pillow can read. Convert it "
        "to JPEG or PNG.",
        folder / "pipe.jpg": f"{folder}/pipe.jpg is a pipe or a device. Give the name of an image.",
        folder / "link.jpg": f"There is no file {folder}/link.jpg. Give the name of an image.",
        folder / "directory.jpg": f"{folder}/directory.jpg is a directory. Give the images in it, "
        f"such as `sorted(pathlib.Path('{folder}/directory.jpg').iterdir())`.",
    }


def _reason(file):
    """Why Pillow cannot read a file, in the words of the installed version."""
    try:
        with Image.open(file) as image:
            ImageOps.exif_transpose(image)
    except OSError as error:
        return str(error)
    raise AssertionError(f"{file} is not broken")


def png(pixels, bits=8, claimed=None):
    """The bytes of an RGB file. `claimed`: (width, height) in the header, instead of the true."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", *(claimed or (width, height)), bits, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
