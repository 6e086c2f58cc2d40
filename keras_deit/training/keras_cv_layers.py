"""All that is used of keras-cv, which is no longer developed and whose augmentations are the fast ones."""

import functools


@functools.cache
def rand_augment():
    """RandAugment as the recipes have it, timm's `rand-m9-mstd0.5-inc1`: images (H, W, 3), 0 to 255, to the same.

    Two operations, each applied to half of the images, at magnitude 9 of 10 with a spread of 0.5. keras-cv has contrast, equalize,
    solarize, colour, brightness, shear and translation; timm also has rotation, posterize, sharpness and invert.
    """
    try:
        from keras_cv.layers import RandAugment
    except ImportError as error:
        raise ImportError('RandAugment needs keras-cv: pip install "keras_deit[train]"') from error
    return RandAugment(value_range=(0, 255), augmentations_per_image=2, magnitude=0.9, magnitude_stddev=0.05, rate=0.5)
