"""Small data sets, laid out as their owners publish them, with what has to come of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

CORRUPT = b"\xff\xd8\xff\xe0 no more of this JPEG"
Fields = dict[str, Any]


@dataclass
class Case:
    """What a conversion of `source` has to give."""

    source: Path
    samples: dict[str, list[tuple[bytes, Fields]]] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    trimmed: dict[str, dict[str, int]] = field(default_factory=dict)
    options: tuple[str, ...] = ()


def picture(number: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    """The bytes of an image that no other number has."""
    held = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 120)).save(held, kind)
    return held.getvalue()


def put(path: Path, content: Any) -> bytes:
    """Bytes as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    return data


def put_lines(path: Path, rows: list[Any]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def coco_name(part: str, number: int) -> str:
    return f"{number:012d}.jpg" if part.endswith("2017") else f"COCO_{part}_{number:012d}.jpg"


# Captions


def coco_official(source: Path, year: str = "2014") -> Case:
    case = Case(source)
    for split in ("train", "val"):
        part = f"{split}{year}"
        images = [
            {"id": i, "file_name": coco_name(part, i), "width": 24, "height": 16, "license": 1, "coco_url": "http://x"}
            for i in (9, 25, 30, 34, 36, 42)
        ]
        said = {
            9: ["A closeup of bins. ", "Cafe\u0301 food"],
            25: ["A giraffe", "  "],
            30: ["A vase"],
            34: ["A zebra"],
            36: [" ", ""],
            42: ["Shoes"],
        }
        annotations = [
            {"image_id": i, "id": 100 * i + n, "caption": text}
            for n in range(2)
            for i, texts in said.items()
            for text in texts[n : n + 1]
        ]
        put(source / f"annotations/captions_{part}.json", {"info": {}, "images": images, "annotations": annotations})
        kept = {i: put(source / part / coco_name(part, i), picture(i)) for i in (9, 25, 42)}
        put(source / part / coco_name(part, 30), CORRUPT)  # 34 is not there at all
        case.samples[split] = [
            (kept[9], {"id": "9", "captions": ["A closeup of bins.", "Caf\u00e9 food"]}),
            (kept[25], {"id": "25", "captions": ["A giraffe"]}),
            (kept[42], {"id": "42", "captions": ["Shoes"]}),
        ]
        case.dropped[split] = {"corrupt image": 1, "empty caption": 1, "missing image": 1}
        case.trimmed[split] = {"empty caption, others kept": 1}
    return case


def coco_2017(source: Path) -> Case:
    return coco_official(source, "2017")


def karpathy(source: Path, *options: str) -> Case:
    images = [
        {
            "filepath": folder,
            "sentids": [i],
            "filename": coco_name(folder, i),
            "imgid": i,
            "split": split,
            "sentences": [{"tokens": ["a"], "raw": f" {split} {i}", "imgid": i, "sentid": i}],
            "cocoid": i,
        }
        for i, (folder, split) in enumerate(
            [("val2014", "test"), ("train2014", "train"), ("val2014", "restval"), ("val2014", "val")], 1
        )
    ]
    put(source / "dataset_coco.json", {"images": images, "dataset": "coco"})
    parts: dict[str, list[tuple[bytes, Fields]]] = {"train": [], "val": [], "test": [], "restval": []}
    for image in images:
        data = put(source / "coco" / image["filepath"] / image["filename"], picture(image["imgid"]))
        fields = {"id": str(image["cocoid"]), "captions": [image["sentences"][0]["raw"].strip()]}
        parts[image["split"]].append((data, fields))
    restval = parts.pop("restval")
    where = options[1] if options else "train"
    if where == "restval":
        parts["restval"] = restval
    elif where == "train":
        parts["train"] += restval
    return Case(source, parts, options=options)


def karpathy_restval_apart(source: Path) -> Case:
    return karpathy(source, "--restval", "restval")


def karpathy_without_restval(source: Path) -> Case:
    return karpathy(source, "--restval", "none")


def nocaps(source: Path) -> Case:
    images = [
        {"id": i, "open_images_id": name, "file_name": f"{name}.jpg", "height": 16, "width": 24, "license": 0}
        for i, name in enumerate(("0013ea2087020901", "0015e0a6e9c1b3ab", "001fa4ee5c3a1e83"))
    ]
    domains = ("in-domain", "near-domain", "out-domain")
    annotations = [{"image_id": i, "id": 10 * i + n, "caption": f"{n} of {i}"} for i in range(3) for n in range(2)]
    tests = [{key: value for key, value in image.items() if key != "license"} for image in images]
    known = [{**image, "domain": domain} for image, domain in zip(images, domains, strict=True)]
    put(source / "nocaps_val_4500_captions.json", {"licenses": [], "images": known, "annotations": annotations})
    put(source / "nocaps_test_image_info.json", {"licenses": [], "info": {}, "images": tests})
    case = Case(source, {"val": [], "test": []}, {"val": {"corrupt image": 1}, "test": {"corrupt image": 1}})
    for split in ("val", "test"):
        for i, image in enumerate(images):
            data = put(source / split / image["file_name"], picture(i) if i != 1 else CORRUPT)
            said: Fields = {"captions": [f"0 of {i}", f"1 of {i}"], "domain": domains[i]}
            if i != 1:
                case.samples[split].append((data, {"id": str(i), **(said if split == "val" else {"captions": []})}))
    return case


def visual_genome(source: Path) -> Case:
    homes = {1: "VG_100K_2", 2: "VG_100K", 3: "VG_100K", 4: "VG_100K_2"}
    phrases = {1: ["the clock is green", " shade along the street"], 2: ["a wall", ""], 3: [], 4: ["a man"]}
    data = [
        {"image_id": i, "url": f"https://cs.stanford.edu/people/rak248/{home}/{i}.jpg", "width": 24, "height": 16}
        for i, home in homes.items()
    ]
    regions = [
        {
            "id": i,
            "regions": [
                {"region_id": 100 * i + n, "image_id": i, "phrase": phrase, "x": 0, "y": 0, "width": 2, "height": 2}
                for n, phrase in enumerate(said)
            ],
        }
        for i, said in phrases.items()
    ]
    put(source / "image_data.json", data)
    put(source / "region_descriptions.json", regions)
    for name in ("VG_100K", "VG_100K_2"):
        (source / name).mkdir(parents=True)
    first, second = (put(source / homes[i] / f"{i}.jpg", picture(i)) for i in (1, 2))
    samples = [
        (first, {"id": "1", "captions": ["the clock is green", "shade along the street"]}),
        (second, {"id": "2", "captions": ["a wall"]}),
    ]
    dropped = {"missing image": 1, "no caption": 1}
    return Case(source, {"train": samples}, {"train": dropped}, {"train": {"empty caption, others kept": 1}})


def localized_narratives(source: Path) -> Case:
    def row(dataset: str, image: str, caption: str) -> Fields:
        empty: Fields = {"timed_caption": [], "traces": [], "voice_recording": "x.ogg"}
        return {"dataset_id": dataset, "image_id": image, "annotator_id": 3, "caption": caption, **empty}

    shards = [[row("mscoco_train2017", "139", "In this image.")], [row("mscoco_train2017", "139", " Again. ")]]
    for n, rows in enumerate(shards):
        put_lines(source / f"LN/coco_train_localized_narratives-{n:05d}-of-00002.jsonl", rows)
    flickr = [row("Flickr30k_train", "1000092795", "Two men."), row("Flickr30k_train", "5", "")]
    put_lines(source / "LN/flickr30k_train_captions.jsonl", flickr)
    ade = [row("ADE20k_validation", "ADE_val_00000001", "A yard.")]
    put_lines(source / "LN/ade20k_validation_localized_narratives.jsonl", ade)
    pieces = [row("open_images_train_v6", i, f"Open {i}.") for i in ("0001eeaf4aed83f9", "a0001eeaf4aed83f")]
    put_lines(source / "LN/open_images_train_v6_localized_narratives-00000-of-00001.jsonl", pieces)
    at = {
        "139": "coco/train2017/000000000139.jpg",
        "1000092795": "flickr30k-images/1000092795.jpg",
        "ADE_val_00000001": "ADE20K_2021_17_01/images/ADE/validation/urban/yard/ADE_val_00000001.jpg",
        "0001eeaf4aed83f9": "oi/train_0/0001eeaf4aed83f9.jpg",
        "a0001eeaf4aed83f": "oi/train_a/a0001eeaf4aed83f.jpg",
    }
    said = [["In this image.", "Again."], ["Two men."], ["A yard."], *([f"Open {i}."] for i in [*at][3:])]
    made = [
        (put(source / path, picture(n)), {"id": image, "captions": captions})
        for n, ((image, path), captions) in enumerate(zip(at.items(), said, strict=True))
    ]
    return Case(source, {"train": made[:2] + made[3:], "val": [made[2]]}, {"train": {"empty caption": 1}})


def hateful_memes(source: Path) -> Case:
    case = Case(source)
    for split, name, start in (("train", "train", 1), ("val", "dev", 10)):
        ids = range(start, start + 3)
        rows = [{"id": i, "img": f"img/{i:05d}.png", "label": i % 2, "text": f" meme {i}"} for i in ids]
        put_lines(source / f"data/{name}.jsonl", rows)
        kept = [put(source / "data" / row["img"], picture(row["id"], "PNG")) for row in rows[:2]]
        put(source / "data" / rows[2]["img"], b"")
        case.samples[split] = [
            (data, {"id": str(row["id"]), "captions": [row["text"].strip()], "label": row["label"]})
            for data, row in zip(kept, rows, strict=False)
        ]
        case.dropped[split] = {"empty file": 1}
    return case


# Questions and statements


def vqa_of_coco(source: Path, prefix: str, topics: Fields) -> Case:
    case = Case(source)
    for split in ("train", "val"):
        part = f"{split}2014"
        asked = [
            (1, 1001, "Is it?"),
            (2, 2001, "What? "),
            (1, 1002, "How many?"),
            (3, 3001, "Who?"),
            (3, 3002, "Where?"),
        ]
        questions = [{"image_id": i, "question": text, "question_id": q} for i, q, text in asked]
        questions += [{"image_id": 2, "question": "  ", "question_id": 2002}]
        answers = [{"answer": f"a{n}", "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
        kinds = [*topics] or ["what is"]
        annotations = [
            {
                "question_type": kinds[0],
                "multiple_choice_answer": "a0",
                "answers": answers,
                "image_id": one["image_id"],
                "answer_type": "other",
                "question_id": one["question_id"],
            }
            for one in questions
        ]
        more = {"question_types": topics} if topics else {}
        put(source / f"{prefix}OpenEnded_mscoco_{part}_questions.json", {"info": {}, "questions": questions})
        put(source / f"{prefix}mscoco_{part}_annotations.json", {"annotations": annotations, **more})
        told = {"answers": [f"a{n}" for n in range(10)], "answer_type": "other", "question_type": kinds[0]}
        told |= {"group": topics[kinds[0]]} if topics else {}
        kept = {i: put(source / part / coco_name(part, i), picture(i)) for i in (1, 2)}
        entries = {q: {"id": str(q), "question": text.strip(), **told} for _, q, text in asked}
        case.samples[split] = [
            (kept[1], {"id": "1", "questions": [entries[1001], entries[1002]]}),
            (kept[2], {"id": "2", "questions": [entries[2001]]}),
        ]
        case.dropped[split] = {"empty question": 1, "missing image": 2}
    return case


def vqa2(source: Path) -> Case:
    case = vqa_of_coco(source, "v2_", {})
    questions = [{"image_id": 7, "question": "Is it on?", "question_id": 7000}]
    put(source / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    data = put(source / "test2015/COCO_test2015_000000000007.jpg", picture(7))
    asked = [{"id": "7000", "question": "Is it on?", "answers": []}]
    case.samples["testdev"] = [(data, {"id": "7", "questions": asked})]
    return case


def okvqa(source: Path) -> Case:
    return vqa_of_coco(source, "", {"four": "Sports and Recreation"})


def gqa(source: Path) -> Case:
    case = Case(source)
    for split, image in (("train", "2375429"), ("val", "n161313"), ("testdev", "n55555")):
        one = {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "x"}],
            "entailed": [],
            "equivalent": ["02930152"],
            "question": "Is the sky dark?",
            "imageId": image,
            "isBalanced": True,
            "groups": {"global": None, "local": "06-sky_dark"},
            "answer": "yes",
            "semanticStr": "select: sky",
            "annotations": {},
            "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
            "fullAnswer": "Yes, the sky is dark.",
        }
        more = {**one, "question": "What is it?", "answer": "bird", "groups": {"global": "animal", "local": "x"}}
        lost = {**one, "imageId": "lost"}
        put(source / f"{split}_balanced_questions.json", {"02930152": one, "07333408": more, "0999": lost})
        data = put(source / f"images/{image}.jpg", picture(len(split)))
        told = {"question_type": "verify", "semantic_type": "attr"}
        entries = [
            {"id": "02930152", "question": "Is the sky dark?", "answers": ["yes"], **told},
            {"id": "07333408", "question": "What is it?", "answers": ["bird"], **told, "group": "animal"},
        ]
        case.samples[split] = [(data, {"id": image, "questions": entries})]
        case.dropped[split] = {"missing image": 1}
    return case


def vizwiz(source: Path) -> Case:
    case = Case(source)
    answers = [{"answer_confidence": "yes", "answer": "basil"}] * 9 + [{"answer_confidence": "no", "answer": "leaves"}]
    for split in ("train", "val", "test"):
        names = [f"VizWiz_{split}_{i:08d}.jpg" for i in range(3)]
        rows: list[Fields] = [{"image": name, "question": f"What is {i}?"} for i, name in enumerate(names)]
        if split != "test":
            rows = [{**row, "answers": answers, "answer_type": "other", "answerable": 1} for row in rows]
        put(source / f"Annotations/{split}.json", rows)
        kept = [put(source / split / name, picture(i)) for i, name in enumerate(names[:2])]
        put(source / split / names[2], CORRUPT)
        said = {"answers": [one["answer"] for one in answers], "answer_type": "other", "answerable": 1}
        told: Fields = said if split != "test" else {"answers": []}
        case.samples[split] = [
            (data, {"id": name, "questions": [{"id": name, "question": f"What is {i}?", **told}]})
            for i, (data, name) in enumerate(zip(kept, names, strict=False))
        ]
        case.dropped[split] = {"corrupt image": 1}
    return case


def snli_ve(source: Path) -> Case:
    case = Case(source)
    labels = ("entailment", "neutral", "contradiction", "-")
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        rows = [
            {
                "annotator_labels": [label],
                "captionID": f"{image}.jpg#2",
                "gold_label": label,
                "pairID": f"{image}.jpg#2r{i}{label[0]}",
                "sentence1": "Two women.",
                "sentence2": f"They {label}. ",
                "Flickr30K_ID": image,
            }
            for i, (image, label) in enumerate(zip(("47055", "47056", "47055", "47056"), labels, strict=True))
        ]
        lost = {**rows[0], "Flickr30K_ID": "404", "pairID": "404.jpg#0r1e"}
        put_lines(source / f"snli_ve_{name}.jsonl", [*rows, lost])
        kept = {i: put(source / f"flickr30k-images/{i}.jpg", picture(int(i))) for i in ("47055", "47056")}
        entries = [{"id": r["pairID"], "text": r["sentence2"].strip(), "label": r["gold_label"]} for r in rows]
        case.samples[split] = [
            (kept["47055"], {"id": "47055", "statements": [entries[0], entries[2]]}),
            (kept["47056"], {"id": "47056", "statements": [entries[1]]}),
        ]
        case.dropped[split] = {"missing image": 1, "no gold label": 1}
    return case


# The web


def urls(source: Path, count: int = 5) -> tuple[list[str], list[bytes]]:
    """Images with file:// URLs; the one before the last is corrupt, the last is not there."""
    data = [picture(i, ("JPEG", "PNG", "WEBP", "GIF")[i % 4]) for i in range(count - 2)]
    for i, content in enumerate([*data, CORRUPT]):
        put(source / f"web/{i}", content)
    return [f"file://{source}/web/{i}" for i in range(count)], data


def tsv(source: Path, name: str, head: str, columns: Callable[[str, str], str]) -> list[tuple[bytes, Fields]]:
    """The official list of captions and URLs, one caption of which is empty; what has to come of it."""
    links, data = urls(source)
    rows = [columns(f"caption {i} ", link) for i, link in enumerate(links)]
    put(source / name, "\n".join([*([head] if head else []), *rows, columns(" ", links[0]), "one cell", ""]).encode())
    return [
        (content, {"id": str(i + 1 + bool(head)), "captions": [f"caption {i}"], "url": links[i]})
        for i, content in enumerate(data)
    ]


LISTED = {"corrupt image": 1, "missing image": 1, "empty caption": 1, "not two columns": 1}


def cc3m(source: Path) -> Case:
    train = tsv(source, "Train_GCC-training.tsv", "", lambda text, url: f"{text}\t{url}")
    put(source / "Validation_GCC-1.1.0-Validation.tsv", f"val\tfile://{source}/web/0\n".encode())
    val = [(train[0][0], {"id": "1", "captions": ["val"], "url": f"file://{source}/web/0"})]
    return Case(source, {"train": train, "val": val}, {"train": LISTED})


def cc12m(source: Path) -> Case:
    train = tsv(source, "cc12m.tsv", "url\tcaption", lambda text, url: f"{url}\t{text}")
    return Case(source, {"train": train}, {"train": LISTED})


def fetched_by_img2dataset(folder: Path, layout: str, similarity: str = "") -> list[tuple[bytes, Fields]]:
    """Two shards as img2dataset writes them: three good samples, a corrupt one, an empty caption, a failed download."""
    made = []
    for shard in range(2):
        rows: list[Fields] = []
        entries: list[tuple[str, bytes]] = []
        for i in range(6):
            key = f"{shard:05d}{i:04d}"
            row: Fields = {"caption": f"{shard} {i}", "url": f"http://x/{key}", "key": key, "status": "success"}
            row |= {"error_message": None, "width": 24, "height": 16, "original_width": 240, "original_height": 160}
            row |= {similarity: i / 10} if similarity else {}
            row |= {"caption": " "} if i == 4 else {}
            row |= {"status": "failed_to_download", "error_message": "404"} if i == 5 else {}
            rows.append(row)
            if i == 5:
                continue
            data = picture(10 * shard + i, size=(24, 16)) if i != 3 else CORRUPT
            entries += [(f"{key}.jpg", data), (f"{key}.json", json.dumps(row).encode())]
            entries += [(f"{key}.txt", row["caption"].encode())]
            if i < 3:
                extra = {"similarity": i / 10} if similarity else {}
                made.append((data, {"id": key, "captions": [row["caption"]], "url": row["url"], **extra}))
        base = folder / f"{shard:05d}"
        put(base.with_name(f"{base.name}_stats.json"), {"count": 6, "successes": 5, "failed_to_download": 1})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), f"{base}.parquet")
        if layout == "files":
            for name, data in entries:
                put(base / name, data)
        else:
            with tarfile.open(f"{base}.tar", "w") as tar:
                for name, data in entries:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return made


FETCHED = {"corrupt image": 2, "empty caption": 2, "img2dataset: failed_to_download": 2}


def cc3m_fetched(source: Path) -> Case:
    train = fetched_by_img2dataset(source / "cc3m", "webdataset")
    val = fetched_by_img2dataset(source / "cc3m/val", "files")
    put(source / "cc3m/00002.tar", b"img2dataset was killed in here")
    return Case(source, {"train": train, "val": val}, {"train": FETCHED, "val": FETCHED})


def cc12m_fetched(source: Path) -> Case:
    return Case(source, {"train": fetched_by_img2dataset(source, "files")}, {"train": FETCHED})


def laion_fetched(source: Path) -> Case:
    made = fetched_by_img2dataset(source, "webdataset", "SIMILARITY")
    kept = [sample for sample in made if sample[1]["similarity"] >= 0.1]
    dropped = {**FETCHED, "similarity below 0.1": 2}
    return Case(source, {"train": kept}, {"train": dropped}, options=("--min-similarity", "0.1"))


def laion(source: Path) -> Case:
    links, data = urls(source)
    rows = [
        {"SAMPLE_ID": i, "URL": link, "TEXT": f"text {i}", "HEIGHT": 100, "WIDTH": 90, "similarity": 0.25}
        for i, link in enumerate(links)
    ]
    rows += [{**rows[0], "similarity": 0.1}, {**rows[0], "WIDTH": 9}, {**rows[0], "similarity": None}]
    put(source / "laion/empty", b"")
    name = "part-00000-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source / "laion" / name)
    samples = [
        (content, {"id": f"{name}:{i}", "captions": [f"text {i}"], "url": links[i], "similarity": 0.25})
        for i, content in enumerate(data)
    ]
    dropped = {"corrupt image": 1, "missing image": 1, "similarity below 0.2": 2, "smaller than 12 pixels": 1}
    return Case(source, {"train": samples}, {"train": dropped}, options=("--min-similarity", "0.2", "--min-size", "12"))


WIT = (
    *("language", "page_url", "image_url", "page_title", "section_title", "hierarchical_section_title"),
    *("caption_reference_description", "caption_attribution_description", "caption_alt_text_description"),
    *("mime_type", "original_height", "original_width", "is_main_image", "attribution_passes_lang_id"),
    *("page_changed_recently", "context_page_description", "context_section_description"),
)


def wit(source: Path) -> Case:
    links, data = urls(source)
    texts = [("The reference", "An attribution", "An alt"), ("", "An attribution", "An alt"), ("", "English: A", "")]
    texts += [("x", "", ""), ("y", "", "")]
    rest = ["image/jpeg", 16, 24, "true", "", "", "", ""]
    rows = [
        dict(zip(WIT, ["en", "p", link, "t", "", "", *three, *rest], strict=True))
        for link, three in zip(links, texts, strict=True)
    ]
    rows[0]["context_page_description"] = 'He said "no",\tand\nwent.'
    rows += [{**rows[0], "language": "de"}, {**rows[0], "mime_type": "image/svg+xml"}]
    rows += [{**rows[2], "caption_attribution_description": " "}]
    for n in range(2):
        held = io.StringIO()
        writer = csv.DictWriter(held, WIT, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows if n == 0 else [])
        put(source / f"wit_v1.train.all-{n:05d}-of-00002.tsv.gz", gzip.compress(held.getvalue().encode()))
    said = ["The reference", "An alt", "English: A"]
    samples = [
        (content, {"id": f"wit_v1.train.all-00000-of-00002:{i + 1}", "captions": [said[i]], "url": links[i]})
        for i, content in enumerate(data)
    ]
    dropped = {"corrupt image": 1, "missing image": 1, "empty caption": 1, "format image/svg+xml": 1}
    return Case(source, {"train": samples}, {"train": dropped})
