"""The field's datasets: where their parts lie, and how many pictures each should have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """One dataset in the field's layout.

    Attributes:
        folder: its own folder, beside those of the others. pictures: the folder in it that the
        lists' paths are relative to; "": its own. split_file: the reference's split; None: the
        reference uses the dataset's own lists or folders. classes: how many. counts: pictures of
        train, val, test. halves: test pictures of base and new; None: not known. site: where the
        publisher describes it.
    """

    folder: str
    pictures: str
    split_file: str | None
    classes: int
    counts: tuple[int, int, int]
    halves: tuple[int, int] | None
    site: str


KNOWN = {
    "imagenet": Known(
        "imagenet",
        "images",
        None,
        1000,
        (1281167, 0, 50000),
        (25000, 25000),
        "https://image-net.org",
    ),
    "caltech101": Known(
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        100,
        (4128, 1649, 2465),
        (1549, 916),
        "https://data.caltech.edu/records/mzrjq-6wc02",
    ),
    "oxford_pets": Known(
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        37,
        (2944, 736, 3669),
        (1881, 1788),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "stanford_cars": Known(
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        196,
        (6509, 1635, 8041),
        (4002, 4039),
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    ),
    "flowers102": Known(
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        102,
        (4093, 1633, 2463),
        (1053, 1410),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "food101": Known(
        "food-101",
        "images",
        "split_zhou_Food101.json",
        101,
        (50500, 20200, 30300),
        (15300, 15000),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    "fgvc_aircraft": Known(
        "fgvc_aircraft",
        "images",
        None,
        100,
        (3334, 3333, 3333),
        None,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    ),
    "sun397": Known(
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        397,
        (15880, 3970, 19850),
        (9950, 9900),
        "https://vision.princeton.edu/projects/2010/SUN/",
    ),
    "dtd": Known(
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        47,
        (2820, 1128, 1692),
        (864, 828),
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    "eurosat": Known(
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        10,
        (13500, 5400, 8100),
        (4200, 3900),
        "https://github.com/phelber/eurosat",
    ),
    "ucf101": Known(
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        101,
        (7639, 1898, 3783),
        (1934, 1849),
        "https://www.crcv.ucf.edu/data/UCF101.php",
    ),
    "imagenetv2": Known(
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        None,
        1000,
        (0, 0, 10000),
        None,
        "https://github.com/modestyachts/ImageNetV2",
    ),
    "imagenet_sketch": Known(
        "imagenet-sketch",
        "images",
        None,
        1000,
        (0, 0, 50889),
        None,
        "https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    "imagenet_a": Known(
        "imagenet-adversarial",
        "imagenet-a",
        None,
        200,
        (0, 0, 7500),
        None,
        "https://github.com/hendrycks/natural-adv-examples",
    ),
    "imagenet_r": Known(
        "imagenet-rendition",
        "imagenet-r",
        None,
        200,
        (0, 0, 30000),
        None,
        "https://github.com/hendrycks/imagenet-r",
    ),
}
