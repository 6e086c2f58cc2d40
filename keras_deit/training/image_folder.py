"""Images in folders, as names that `tf.data` reads when it needs them."""

import dataclasses
import os
import pathlib

import numpy as np

from keras_deit.arguments import check_choice
from keras_deit.training.require_tensorflow import tf

FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")  # that TensorFlow decodes
_NAMED = f"as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder with a subfolder of images for each class, as ImageNet is kept: `cat/1.jpg`,
    `dog/2.png`.

    Args:
        files: names of the image files.
        labels: the class of each, an index of `class_names`.
        class_names: names of the subfolders, in alphabetical order.
        skipped: names of the files that are no images and were left out.
    """

    files: tuple
    labels: tuple
    class_names: tuple
    skipped: tuple = ()

    @classmethod
    def open(cls, directory):
        """Lists a folder; reads no image. Files of another format are `skipped`.

        Raises:
            ValueError: there is no such folder, or no image in one of its subfolders.
        """
        directory = pathlib.Path(os.path.expanduser(directory))
        if not directory.is_dir():
            raise ValueError(
                f"There is no folder {directory}. Give one with a subfolder of images for each "
                "class."
            )
        folders = sorted(
            entry
            for entry in directory.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        found = [
            (file, label) for label, folder in enumerate(folders) for file in _files_under(folder)
        ]
        images = [(str(file), label) for file, label in found if file.suffix.lower() in FORMATS]
        others = sorted(str(file) for file, _ in found if file.suffix.lower() not in FORMATS)
        if not images:
            raise ValueError(
                f"There are no images in subfolders of {directory}, {_NAMED}. Give a folder with "
                "one for each class."
            )
        files, labels = zip(*images)
        return cls(
            files, labels, tuple(folder.name for folder in folders), tuple(others)
        )._with_images_of_each_class()

    def checked(self, skip_broken=False, num_shards=1, shard=0):
        """Reads each image once, so that none breaks a training.

        Args:
            skip_broken: whether files that are no images are left out. Otherwise they are an error.
            num_shards, shard: processes that share the work, and which of them this is. With
                `skip_broken` each reads all, for all must leave out the same.

        Raises:
            ValueError: a file cannot be read as an image; no file can.
        """
        files = self.files if skip_broken else self.files[shard::num_shards]
        names = tf.data.Dataset.from_tensor_slices(np.array(files, object).astype(str))
        broken = np.fromiter(
            names.map(_is_broken, tf.data.AUTOTUNE, deterministic=True).as_numpy_iterator(), bool
        )
        if not broken.any():
            return self
        bad = tuple(np.array(files, object)[broken])
        if not skip_broken or broken.all():
            raise ValueError(
                f"{len(bad)} of {len(files)} files cannot be read as images: "
                f"{', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}. "
                "Remove or replace them, or ask for them to be skipped."
            )
        kept = [index for index, is_broken in enumerate(broken) if not is_broken]
        files, labels = (
            tuple(values[index] for index in kept) for values in (self.files, self.labels)
        )
        rest = dataclasses.replace(self, files=files, labels=labels, skipped=self.skipped + bad)
        return rest._with_images_of_each_class()

    def _with_images_of_each_class(self):
        empty = [
            name for index, name in enumerate(self.class_names) if index not in set(self.labels)
        ]
        if empty:
            raise ValueError(
                f"Every class must have images, {_NAMED}. Convert those of another format, or "
                "remove the folder. "
                f"Received: none in {', '.join(empty)}"
            )
        return self

    def dataset(self):
        """`tf.data.Dataset` of (name, label), to be read by `reader`."""
        return tf.data.Dataset.from_tensor_slices((list(self.files), list(self.labels)))


def _files_under(folder):
    """In the order of Keras' `image_dataset_from_directory`, which leaves out .webp: by folder, and
    by name in it.
    """
    for parent, _, names in sorted(os.walk(folder)):
        yield from (pathlib.Path(parent, name) for name in sorted(names))


def reader(channels=3):
    """The `read` of `training_batches` and `evaluation_batches`: from (name, label) to (image (H,
    W, channels), uint8; label).

    Raises:
        ValueError: `channels` is neither 1, gray, nor 3.
    """
    decode = decoder(channels)

    def read(element):
        name, label = element
        return decode((tf.io.read_file(name), label))

    return read


def decoder(channels=3):
    """As `reader`, from (bytes of a file, label)."""
    check_choice("channels", channels, (1, 3))

    def decode(element):
        content, label = element
        image = _decode(content)
        return (image if channels == 3 else _gray(image)), label

    return decode


def _decode(content):
    """In colour, which every format can. A JPEG as Pillow reads it: TensorFlow's default is faster,
    and up to 16 levels from that.
    """
    is_webp = tf.strings.substr(content, 8, 4) == "WEBP"
    image = tf.case(
        [
            (
                tf.io.is_jpeg(content),
                lambda: tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE"),
            ),
            # Of a WebP with transparency, TensorFlow refuses to leave it out.
            (is_webp, lambda: tf.io.decode_image(content, expand_animations=False)[..., :3]),
        ],
        default=lambda: tf.io.decode_image(content, 3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _gray(image):
    """As Pillow's "L"; what is gray stays as it is."""
    weighted = tf.tensordot(tf.cast(image, tf.int32), [[19595], [38470], [7471]], 1)
    return tf.cast((weighted + 32768) // 65536, tf.uint8)


def _is_broken(name):
    def is_broken(name):
        try:
            _decode(tf.io.read_file(name))
        except tf.errors.OpError:
            return True
        return False

    return tf.numpy_function(is_broken, [name], tf.bool)
