"""Images in a folder with one subfolder per class."""

import dataclasses
import hashlib
import os
import pathlib
from typing import ClassVar

from keras_deit.training.image_reader import image_reader
from keras_deit.training.require_tensorflow import tf

FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The image files of a folder such as `cat/1.jpg`, `dog/2.png`, and their classes.

    Args:
        directory: the folder.
        files: paths of the images.
        labels: the class of each image, an index of `class_names`.
        class_names: names of the subfolders, in alphabetical order.
        skipped: paths of files that are not images of a known format.

    Example:

    ```python
    images = ImageFolder.open("photos/val")
    validation = batches.evaluation_batches(
        images.dataset(), converter, len(images.class_names), 32, image_reader(images)
    )
    ```
    """

    directory: pathlib.Path
    files: tuple
    labels: tuple
    class_names: tuple
    skipped: tuple = ()
    are_files: ClassVar = True  # whether `dataset` yields paths rather than encoded images

    @classmethod
    def open(cls, directory):
        """Lists a folder without reading its images.

        Args:
            directory: path. `~` is the home directory.

        Raises:
            ValueError: if there is no such folder, or a subfolder without images.
        """
        directory = pathlib.Path(os.path.expanduser(directory))
        if not directory.is_dir():
            raise ValueError(
                f"The folder {directory} does not exist. Expected a folder with one subfolder of "
                "images per class."
            )
        folders = sorted(
            entry
            for entry in directory.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        found = [
            (file, label) for label, folder in enumerate(folders) for file in _files_under(folder)
        ]
        images = [(str(file), label) for file, label in found if _is_image(file)]
        skipped = sorted(
            [str(file) for file, _ in found if not _is_image(file)]
            + [str(directory) for folder in folders for directory in _named_as_images(folder)]
        )
        if not images:
            raise ValueError(
                f"Expected one subfolder of images per class in {directory}, with files ending in "
                f"{', '.join(FORMATS)}. Received: {len(folders)} subfolders without such files"
            )
        files, labels = zip(*images)
        names = tuple(folder.name for folder in folders)
        return cls(directory, files, labels, names, tuple(skipped))._checked()

    def __len__(self):
        return len(self.files)

    def dataset(self):
        """`tf.data.Dataset` of (number, path, label), to decode with `image_reader`."""
        return tf.data.Dataset.from_tensor_slices(
            # As bytes, because a name need not be valid UTF-8
            (list(range(len(self))), list(map(os.fsencode, self.files)), list(self.labels))
        )

    def file_names(self):
        """Names of the files, without their folders."""
        return tuple(map(os.path.basename, self.files))

    @property
    def identity(self):
        """A digest of the names and sizes of the files, which changes when an image does."""
        listing = "".join(
            f"{os.path.relpath(file, self.directory)} {_size(file)}\n" for file in self.files
        )
        return f"folder:{hashlib.sha256(os.fsencode(listing)).hexdigest()[:12]}"

    def find_unreadable(self, num_shards=1, shard=0):
        """Reads every image once.

        Args:
            num_shards, shard: the number of processes that share the work, and the index of this
                one.

        Returns:
            `{number: reason}` of the images that cannot be read.
        """
        unreadable = {}
        read = image_reader(self, unreadable=unreadable)
        sizes = self.dataset().shard(num_shards, shard)
        sizes = sizes.map(lambda *element: tf.size(read(element)[0]), tf.data.AUTOTUNE)
        for _ in sizes:
            pass
        return dict(sorted(unreadable.items()))

    def without(self, numbers):
        """The folder without these images, which are added to `skipped`.

        Raises:
            ValueError: if a class has no images left.
        """
        kept = [index for index in range(len(self)) if index not in numbers]
        files, labels = (
            tuple(values[index] for index in kept) for values in (self.files, self.labels)
        )
        skipped = self.skipped + tuple(self.files[index] for index in sorted(numbers))
        return dataclasses.replace(self, files=files, labels=labels, skipped=skipped)._checked()

    def _checked(self):
        used = set(self.labels)
        empty = [name for index, name in enumerate(self.class_names) if index not in used]
        if empty:
            raise ValueError(
                f"Every subfolder of {self.directory} must contain readable images, with names "
                f"ending in {', '.join(FORMATS)}. Convert the images or remove the subfolder. "
                f"Received: no images in {', '.join(empty)}"
            )
        return self


def _is_image(file):
    return file.suffix.lower() in FORMATS


def _size(file):
    """In bytes; 0 for a link to nowhere, which is an unreadable image as an empty file is."""
    return os.path.getsize(file) if os.path.exists(file) else 0


def _named_as_images(folder):
    """Directories such as `x.jpg` that nothing is read from: empty ones, and links."""
    for parent, names, _ in os.walk(folder):
        for directory in (pathlib.Path(parent, name) for name in names):
            if _is_image(directory) and (directory.is_symlink() or not any(directory.iterdir())):
                yield directory


def _files_under(folder):
    """In the order of `keras.utils.image_dataset_from_directory`: by folder, then by name."""
    for parent, _, names in sorted(os.walk(folder)):
        yield from (pathlib.Path(parent, name) for name in sorted(names))
