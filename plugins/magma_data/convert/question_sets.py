"""Published data sets of questions or statements about images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from .annotations import ImageEntry, clean_text, group_by_image, image_in, load_json, load_lines, question_entry
from .base_set import OfficialSet, Options
from .caption_sets import COCO, FLICKR, FLICKR_FOLDERS
from .required_files import SplitFiles, required_file
from .shards import DroppedRow, Item

_VQA = "https://visualqa.org/download.html"
_OKVQA = "https://okvqa.allenai.org/download.html"
_GQA = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
_VIZWIZ = "https://vizwiz.org/tasks-and-datasets/vqa"
_SNLI_VE = "https://github.com/necla-ml/SNLI-VE"


class _CocoQuestions(OfficialSet):
    """Questions in one file, answers in another, images of COCO in folders of 2014 or 2015."""

    kind = "vqa"
    questions_file = "OpenEnded_mscoco_{}_questions.json"
    annotations_file = "mscoco_{}_annotations.json"
    parts: ClassVar[dict[str, str]] = {"train": "train2014", "val": "val2014"}

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image, in the order of the questions."""
        part = self.parts[split]
        known, names = None, {}
        if annotations := found.all(self.annotations_file.format(part)):
            loaded = load_json(annotations[0])
            known = {one["question_id"]: one for one in loaded["annotations"]}
            names = loaded.get("question_types", {})  # OK-VQA's ten topics
        folder = part.replace("test-dev", "test")  # test-dev is a subset of test
        folders = found.all(f"{folder}/", split)
        questions = load_json(found.one(self.questions_file.format(part)))["questions"]

        def rows() -> Iterator[ImageEntry | DroppedRow]:
            for one in questions:
                annotation = {} if known is None else known.get(one["question_id"])
                if annotation is None:
                    yield DroppedRow(str(one["question_id"]), "no annotation")
                    continue
                kind = annotation.get("question_type")
                entry = question_entry(
                    str(one["question_id"]),
                    one["question"],
                    [answer["answer"] for answer in annotation.get("answers", ())],
                    answer_type=annotation.get("answer_type"),
                    question_type=kind,
                    group=names.get(kind),
                )
                place = image_in(folders, f"COCO_{folder}_{one['image_id']:012d}.jpg")
                yield str(one["image_id"]), place, entry

        return group_by_image("questions", "question", rows())


class Vqa2(_CocoQuestions):
    """VQA 2.0: ten answers per question."""

    name = "vqa2"
    home = _VQA
    questions_file = "v2_OpenEnded_mscoco_{}_questions.json"
    annotations_file = "v2_mscoco_{}_annotations.json"
    parts: ClassVar = {"train": "train2014", "val": "val2014", "test": "test2015", "testdev": "test-dev2015"}
    optional = frozenset({"test", "testdev"})
    required_files = (
        required_file(
            "v2_OpenEnded_mscoco_train2014_questions.json", "train", f"v2_Questions_Train_mscoco.zip, {_VQA}"
        ),
        required_file("v2_mscoco_train2014_annotations.json", "train", f"v2_Annotations_Train_mscoco.zip, {_VQA}"),
        required_file("train2014/", "train", f"train2014.zip, {COCO}"),
        required_file("v2_OpenEnded_mscoco_val2014_questions.json", "val", f"v2_Questions_Val_mscoco.zip, {_VQA}"),
        required_file("v2_mscoco_val2014_annotations.json", "val", f"v2_Annotations_Val_mscoco.zip, {_VQA}"),
        required_file("val2014/", "val", f"val2014.zip, {COCO}"),
        required_file("v2_OpenEnded_mscoco_test2015_questions.json", "test", f"v2_Questions_Test_mscoco.zip, {_VQA}"),
        required_file("test2015/", "test", f"test2015.zip, {COCO}"),
        required_file(
            "v2_OpenEnded_mscoco_test-dev2015_questions.json", "testdev", f"v2_Questions_Test_mscoco.zip, {_VQA}"
        ),
        required_file("test2015/", "testdev", f"test2015.zip, {COCO}"),
    )


class OkVqa(_CocoQuestions):
    """OK-VQA: questions that need external knowledge; `group` is the topic of the question."""

    name = "okvqa"
    home = _OKVQA
    required_files = tuple(
        one
        for split in ("train", "val")
        for one in (
            *(
                required_file(name, split, f"{name}.zip, {_OKVQA}")
                for name in (f"OpenEnded_mscoco_{split}2014_questions.json", f"mscoco_{split}2014_annotations.json")
            ),
            required_file(f"{split}2014/", split, f"{split}2014.zip, {COCO}"),
        )
    )


class Gqa(OfficialSet):
    """GQA, balanced questions: one answer per question; `group` is the global group in the annotations."""

    name = "gqa"
    kind = "vqa"
    home = _GQA
    optional = frozenset({"test"})
    required_files = tuple(
        one
        for split in ("train", "val", "testdev", "test")
        for one in (
            required_file(f"{split}_balanced_questions.json", split, f"questions1.2.zip, {_GQA}"),
            required_file("images/", split, f"images.zip, {_GQA}"),
        )
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image. The answers of the test split are not published."""
        folders = found.all("images/", split)

        def rows() -> Iterator[ImageEntry]:
            for identity, one in load_json(found.one(f"{split}_balanced_questions.json")).items():
                types, groups = one.get("types") or {}, one.get("groups") or {}
                entry = question_entry(
                    identity,
                    one["question"],
                    [one["answer"]] if "answer" in one else [],
                    question_type=types.get("structural"),
                    semantic_type=types.get("semantic"),
                    group=groups.get("global"),
                )
                yield one["imageId"], image_in(folders, f"{one['imageId']}.jpg"), entry

        return group_by_image("questions", "question", rows())


class VizWiz(OfficialSet):
    """VizWiz: one question per image, by blind people; ten answers, some of them "unanswerable"."""

    name = "vizwiz"
    kind = "vqa"
    home = _VIZWIZ
    optional = frozenset({"test"})
    required_files = tuple(
        one
        for split in ("train", "val", "test")
        for one in (
            required_file(f"{split}.json", split, f"Annotations.zip, {_VIZWIZ}"),
            required_file(f"{split}/", split, f"{split}.zip, {_VIZWIZ}"),
        )
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image. The id of a question is the name of its image, as on the server of VizWiz."""
        folders = found.all(f"{split}/", split)

        def rows() -> Iterator[ImageEntry]:
            for one in load_json(found.one(f"{split}.json")):
                entry = question_entry(
                    one["image"],
                    one["question"],
                    [answer["answer"] for answer in one.get("answers", ())],
                    answer_type=one.get("answer_type"),
                    answerable=one.get("answerable"),
                )
                yield one["image"], image_in(folders, one["image"]), entry

        return group_by_image("questions", "question", rows())


class SnliVe(OfficialSet):
    """SNLI-VE: whether an image of Flickr30k entails or contradicts a statement, or neither."""

    name = "snli_ve"
    kind = "labelled"
    home = _SNLI_VE
    required_files = tuple(
        one
        for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))
        for one in (
            required_file(f"snli_ve_{name}.jsonl", split, _SNLI_VE),
            required_file(FLICKR_FOLDERS, split, FLICKR),
        )
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per image. Statements without a gold label ("-", no agreement of annotators) are dropped."""
        folders = found.all("flickr30k-images/", split)

        def rows() -> Iterator[ImageEntry | DroppedRow]:
            for one in load_lines(found.one(f"snli_ve_{'dev' if split == 'val' else split}.jsonl")):
                if one["gold_label"] == "-":
                    yield DroppedRow(one["pairID"], "no gold label")
                    continue
                image = str(one["Flickr30K_ID"]).removesuffix(".jpg")
                entry = {"id": one["pairID"], "text": clean_text(one["sentence2"]), "label": one["gold_label"]}
                yield image, image_in(folders, f"{image}.jpg"), entry

        return group_by_image("statements", "text", rows())
