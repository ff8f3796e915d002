"""Published data sets of images with captions: annotations in JSON, images in folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from .annotations import SizedItems, caption_items, image_in, load_json, load_lines
from .base_set import OfficialSet, Options
from .required_files import RequiredFile, SplitFiles, required_file
from .shards import Item, Record

COCO = "https://cocodataset.org/#download"
FLICKR = "flickr30k-images.tar.gz, https://shannon.cs.illinois.edu/DenotationGraph"
FLICKR_FOLDERS = "flickr30k-images/|flickr30k_images/"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_NOCAPS = "the `coco_url` of each image in the JSON"
_GENOME = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
_MEMES = "https://hatefulmemeschallenge.com"
_NARRATIVES = "https://google.github.io/localized-narratives"


class CocoCaptions(OfficialSet):
    """COCO captions, five per image: the official splits of 2014 or 2017, or Karpathy's."""

    name = "coco_captions"
    kind = "captions"
    home = "https://cocodataset.org"
    supported_options = frozenset({"restval"})
    required_files = (
        *(
            one
            for year in ("2014", "2017")
            for split in ("train", "val")
            for one in (
                required_file(f"captions_{split}{year}.json", split, f"annotations_trainval{year}.zip, {COCO}", year),
                required_file(f"{split}{year}/", split, f"{split}{year}.zip, {COCO}", year),
            )
        ),
        *(
            required_file("dataset_coco.json", split, _KARPATHY, "karpathy")
            for split in ("train", "val", "test", "restval")
        ),
        required_file("train2014/", "train", f"train2014.zip, {COCO}", "karpathy"),
        *(
            required_file("val2014/", split, f"val2014.zip, {COCO}", "karpathy")
            for split in ("train", "val", "test", "restval")
        ),
    )

    def splits(self, layouts: Iterable[str], options: Options) -> list[str]:
        """The splits, with Karpathy's `restval` only if the option asks for it."""
        return [s for s in super().splits(layouts, options) if s != "restval" or options.restval == "restval"]

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image, in the order of the annotation file."""
        (layout,) = found.layouts
        if layout == "karpathy":
            return self._read_karpathy(split, found, options.restval or "train")
        loaded = load_json(found.one(f"captions_{split}{layout}.json"))
        captions = _captions_by_image(loaded["annotations"])
        folders = found.all(f"{split}{layout}/")
        return _flatten(
            caption_items(str(i["id"]), image_in(folders, i["file_name"]), captions[i["id"]]) for i in loaded["images"]
        )

    @staticmethod
    def _read_karpathy(split: str, found: SplitFiles, restval: str) -> Iterable[Item]:
        parts = {split, "restval"} if split == restval == "train" else {split}
        folders = {name: found.all(f"{name}/") for name in ("train2014", "val2014")}
        return _flatten(
            caption_items(
                str(image["cocoid"]),
                image_in(folders[image["filepath"]], image["filename"]),
                [sentence["raw"] for sentence in image["sentences"]],
            )
            for image in load_json(found.one("dataset_coco.json"))["images"]
            if image["split"] in parts
        )


class Nocaps(OfficialSet):
    """nocaps: ten captions per image of Open Images; each image is in, near or out of COCO's domain."""

    name = "nocaps"
    kind = "captions"
    home = "https://nocaps.org/download"
    optional = frozenset({"test"})
    required_files = (
        required_file(
            "nocaps_val_4500_captions.json", "val", "https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json"
        ),
        required_file("val/|validation/|images/", "val", _NOCAPS),
        required_file(
            "nocaps_test_image_info.json", "test", "https://s3.amazonaws.com/nocaps/nocaps_test_image_info.json"
        ),
        required_file("test/|images/", "test", _NOCAPS),
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image. The captions of the test split are not published."""
        name = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}[split]
        loaded = load_json(found.one(name))
        places = {i["id"]: image_in(found.all("images/", split), i["file_name"]) for i in loaded["images"]}
        if split == "test":
            return [Record(str(identity), place, {"captions": []}) for identity, place in places.items()]
        captions = _captions_by_image(loaded["annotations"])
        return _flatten(
            caption_items(str(i["id"]), places[i["id"]], captions[i["id"]], domain=i.get("domain"))
            for i in loaded["images"]
        )


class VisualGenome(OfficialSet):
    """Visual Genome: the captions of an image are the descriptions of its regions."""

    name = "visual_genome"
    kind = "captions"
    home = _GENOME
    required_files = (
        required_file("region_descriptions.json", "train", f"region_descriptions.json.zip, {_GENOME}"),
        required_file("image_data.json", "train", f"image_data.json.zip, {_GENOME}"),
        required_file("VG_100K/", "train", "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip"),
        required_file("VG_100K_2/", "train", "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip"),
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image. The URL of an image says in which of the two folders it is."""
        folder_names = {
            image["image_id"]: image["url"].split("/")[-2] for image in load_json(found.one("image_data.json"))
        }
        folders = {name: found.all(f"{name}/") for name in ("VG_100K", "VG_100K_2")}
        all_folders = [*chain(*folders.values())]
        return _flatten(
            caption_items(
                str(image["id"]),
                image_in(folders.get(folder_names.get(image["id"], ""), all_folders), f"{image['id']}.jpg"),
                [region["phrase"] for region in image["regions"]],
            )
            for image in load_json(found.one("region_descriptions.json"))
        )


class HatefulMemes(OfficialSet):
    """Hateful Memes: the caption is the text on the meme; `label` is 1 if it is hateful, else 0."""

    name = "hateful_memes"
    kind = "captions"
    home = _MEMES
    optional = frozenset({"test"})
    required_files = tuple(
        one
        for names, split in (
            ("train.jsonl", "train"),
            ("dev.jsonl|dev_seen.jsonl", "val"),
            ("test.jsonl|test_seen.jsonl", "test"),
        )
        for one in (required_file(names, split, _MEMES), required_file("img/", split, _MEMES))
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per line; `img` is a path such as `img/42953.png`."""
        name = {"train": "train.jsonl", "val": "dev.jsonl", "test": "test.jsonl"}[split]
        folders = [folder.parent for folder in found.all("img/", split)]
        return _flatten(
            caption_items(str(row["id"]), image_in(folders, row["img"]), [row["text"]], label=row.get("label"))
            for row in load_lines(found.one(name))
        )


_NARRATIVE_PARTS = {
    # part: (split, name of the annotation file, folders of images, where those come from)
    "coco": (
        ("train", "coco_train", "train2017/", COCO),
        ("val", "coco_val", "val2017/", COCO),
    ),
    "flickr30k": tuple((split, f"flickr30k_{split}", FLICKR_FOLDERS, FLICKR) for split in ("train", "val", "test")),
    "ade20k": tuple(
        (split, f"ade20k_{long}", f"images/{folder}/|images/ADE/{folder}/", "https://ade20k.csail.mit.edu")
        for split, long, folder in (("train", "train", "training"), ("val", "validation", "validation"))
    ),
    "open_images": tuple(
        (split, f"open_images_{name}", folders, "https://github.com/cvdfoundation/open-images-dataset")
        for split, name, folders in (
            ("train", "train_v6", "train/|train_[0-9a-f]/"),
            ("val", "validation", "validation/"),
            ("test", "test", "test/"),
        )
    ),
}


class LocalizedNarratives(OfficialSet):
    """Localized Narratives: spoken descriptions of images of COCO, Flickr30k, ADE20k and Open Images."""

    name = "localized_narratives"
    kind = "captions"
    home = _NARRATIVES
    combines_layouts = True
    optional = frozenset({"train", "val", "test"})
    required_files = tuple(
        one
        for part, splits in _NARRATIVE_PARTS.items()
        for split, name, folders, origin in splits
        for one in (
            required_file(
                f"{name}_localized_narratives-?????-of-?????.jsonl|{name}_localized_narratives.jsonl"
                f"|{name}_captions.jsonl",
                split,
                _NARRATIVES,
                part,
            ),
            required_file(folders, split, origin, part),
        )
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image, part by part; an image with several annotators has several captions."""
        captions_by_part: dict[str, dict[str, list[str]]] = {}
        for one, paths in found.paths.items():
            if one.split == split and not one.is_folder:
                captions = captions_by_part.setdefault(one.layout, defaultdict(list))
                for row in chain.from_iterable(map(load_lines, paths)):  # long lines: they contain mouse traces
                    captions[str(row["image_id"])].append(row["caption"])
        places = {
            one.layout: _ImageFolders(one, paths)
            for one, paths in found.paths.items()
            if one.split == split and one.is_folder
        }
        rows = (
            caption_items(image, places[part].of(image), captions)
            for part, images in captions_by_part.items()
            for image, captions in images.items()
        )
        return SizedItems(chain.from_iterable(rows), sum(map(len, captions_by_part.values())))


class _ImageFolders:
    """The folders with the images of a part of Localized Narratives."""

    def __init__(self, one: RequiredFile, folders: list[Path]) -> None:
        self.part, self.folders = one.layout, folders
        self.by_name: dict[str, Path] = {}
        if self.part == "ade20k":  # in the full data set, the folders of images are scenes
            self.by_name = {path.name: path.parent for folder in folders for path in folder.rglob("*.jpg")}

    def of(self, image: str) -> Any:
        """The source of the image with this id."""
        name = f"{int(image):012d}.jpg" if self.part == "coco" else f"{image.removesuffix('.jpg')}.jpg"
        if self.part == "ade20k":
            return image_in([self.by_name.get(name, self.folders[0])], name)
        nested = [
            folder for folder in self.folders if folder.name == f"train_{image[0]}"
        ]  # the archives of Open Images
        plain = [folder for folder in self.folders if not folder.name.startswith("train_")]
        return image_in([*nested, *plain], name)


def _captions_by_image(annotations: Iterable[Any]) -> dict[Any, list[Any]]:
    """Image id to captions, from COCO's annotations."""
    captions: dict[Any, list[Any]] = defaultdict(list)
    for one in annotations:
        captions[one["image_id"]].append(one["caption"])
    return captions


def _flatten(items: Iterable[Iterator[Item]]) -> list[Item]:
    return list(chain.from_iterable(items))
