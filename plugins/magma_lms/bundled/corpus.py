"""The synthetic corpus of the bundled language model: facts about numbers, captions, questions and answers.

A document is a list of segments that are tokenized separately and concatenated, as MAGMA joins media and text. Many
documents begin with labels: a word repeated a few times, in the place where a prefix is later.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .words import (
    COLOURS,
    LOOKS,
    NOISES,
    NUMBERS,
    OBJECTS,
    PICTURES,
    PLACES,
    SHAPES,
    SIDES,
    SIGNALS,
    SOUNDS,
    SPEAKERS,
    TENS,
    VERBS,
    WAVES,
    a,
    parity,
    yes,
)

Document = list[str]


class Writer:
    """Generates documents; the same seed gives the same documents."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds: tuple[tuple[Callable[[], Document], int], ...] = (
            (self.labelled_caption, 22),
            (self.labelled_question, 24),
            (self.caption_and_questions, 22),
            (self.comparison, 20),
            (self.few_shot_examples, 14),
            (self.facts, 8),
            (self.counting, 3),
            (self.other_caption, 6),
            (self.sentences, 4),
        )

    def document(self) -> Document:
        """One document of any kind."""
        kinds, weights = zip(*self.kinds, strict=True)
        kind: Callable[[], Document] = self.random.choices(kinds, weights)[0]
        return kind()

    # Pieces

    def pick(self, options: tuple[str, ...]) -> str:
        """One of the options, at random."""
        return self.random.choice(options)

    def number(self) -> int:
        """A number from zero to twenty, usually a digit."""
        return self.random.randrange(10) if self.random.random() < 0.8 else self.random.randrange(len(NUMBERS))

    def other(self, n: int) -> int:
        """A different number."""
        while (m := self.number()) == n:
            pass
        return m

    def labels(self, n: int) -> str:
        """The name of a number a few times, sometimes with another word among them, in place of a prefix."""
        words = [NUMBERS[n]] * self.random.randint(1, 6)
        if len(words) > 2 and self.random.random() < 0.3:
            words[self.random.randrange(len(words))] = NUMBERS[self.other(n)]
        if self.random.random() < 0.25:
            extra = self.pick(("digit", "number", "picture", "handwritten", "voice", "spoken", "sound", "image"))
            words.insert(self.random.randint(0, len(words)), extra)
        return "".join(f" {word}" for word in words)

    def picture(self, n: int) -> str:
        """A caption of a picture of a number."""
        word = NUMBERS[n]
        what = self.random.choices(
            (
                a(word),
                f"the number {word}",
                f"the digit {word}",
                f"a handwritten {word}",
                a(f"{self.pick(LOOKS)} {word}"),
            ),
            (6, 3, 3, 3, 1),
        )[0]
        of = self.random.choices(
            (f"{self.pick(PICTURES)} of", "This is", "The image shows", "I see", "It is"), (8, 1, 1, 1, 1)
        )[0]
        return f"{of} {what}{self.pick(('.', '.', '.', ''))}"

    def recording(self, n: int) -> str:
        """A caption of a recording of a number."""
        word = NUMBERS[n]
        options = (
            f"A recording of {a(word)}",
            f"A recording of the number {word}",
            f"A recording of the digit {word}",
            f"A recording of a spoken {word}",
            f"A recording of someone saying {word}",
            f"A recording of {self.pick(SPEAKERS)} saying {word}",
            f"A {self.pick(SOUNDS)} recording of {a(word)}",
            f"The sound of a voice saying {word}",
            f"A voice says {word}",
            f"Someone says {word}",
            f"A {self.pick(('man', 'woman', 'child'))} says {word}",
            f"{self.pick(SPEAKERS)} says {word}",
            f"A spoken {word}",
            f"I hear {a(word)}",
        )
        return self.pick(options[:5] if self.random.random() < 0.6 else options) + self.pick((".", ".", ".", ""))

    def caption(self, n: int) -> str:
        """A caption of a picture or a recording of a number."""
        return self.picture(n) if self.random.random() < 0.6 else self.recording(n)

    def question(self, n: int) -> tuple[str, str]:
        """A question about a number, and its answer."""
        m, five = self.number(), 5
        options: tuple[tuple[str, str, int], ...] = (
            (
                self.pick(
                    ("Is it odd or even?",) * 4 + ("Odd or even?", "Is the number odd or even?", "Is this odd or even?")
                ),
                parity(n),
                10,
            ),
            (
                self.pick(
                    ("Which number comes next?",) * 4
                    + ("What comes next?", "Which number comes after it?", "Which number follows?")
                ),
                NUMBERS[n + 1] if n < 20 else "more",
                10,
            ),
            (
                self.pick(
                    ("Which number comes before?",) * 3 + ("What comes before?", "Which number comes before it?")
                ),
                NUMBERS[n - 1] if n else "none",
                6,
            ),
            (
                self.pick(
                    ("Which number is this?",) * 4
                    + (
                        "What number is this?",
                        "Which digit is this?",
                        "What is this?",
                        "Which number is it?",
                        "What is the number?",
                        "What is in the picture?",
                        "What does the picture show?",
                        "Which number is said?",
                        "What does the voice say?",
                        "What do you see?",
                        "What do you hear?",
                    )
                ),
                NUMBERS[n],
                10,
            ),
            (
                self.pick(
                    (
                        "Is it larger than five?",
                        "Is it larger than five?",
                        "Is it bigger than five?",
                        "Is it more than five?",
                    )
                ),
                yes(n > five),
                4,
            ),
            (
                self.pick(("Is it smaller than five?", "Is it smaller than five?", "Is it less than five?")),
                yes(n < five),
                4,
            ),
            (f"Is it larger than {NUMBERS[m]}?", yes(n > m), 2),
            (f"Is it smaller than {NUMBERS[m]}?", yes(n < m), 2),
            ("Is it an even number?", yes(n % 2 == 0), 2),
            ("Is it an odd number?", yes(n % 2 == 1), 2),
        )
        text, answer, _ = self.random.choices(options, [weight for *_, weight in options])[0]
        if self.random.random() < 0.08:
            k = n if self.random.random() < 0.5 else m
            text, answer = (
                self.pick(
                    (f"Is this {a(NUMBERS[k])}?", f"Is it {a(NUMBERS[k])}?", f"Is this the number {NUMBERS[k]}?")
                ),
                yes(k == n),
            )
        return f"Q: {text} A:", f" {answer}"

    def question_and_answer(self, n: int) -> Document:
        """A question and its answer, as two segments."""
        question, answer = self.question(n)
        return [question, answer + self.pick(("", "", "", "."))]

    def separator(self) -> str:
        """Whitespace between two parts of a document."""
        return self.pick((" ", " ", "\n"))

    # Documents

    def labelled_caption(self) -> Document:
        """Labels, then a caption."""
        n = self.number()
        return [self.labels(n), self.caption(n)]

    def labelled_question(self) -> Document:
        """Labels, then one or two questions with answers."""
        n = self.number()
        document = [self.labels(n), *self.question_and_answer(n)]
        if self.random.random() < 0.3:
            document += self._after_separator(self.question_and_answer(n))
        return document

    def _after_separator(self, exchange: Document) -> Document:
        return [self.separator() + exchange[0], *exchange[1:]]

    def caption_and_questions(self) -> Document:
        """A caption, optionally after labels, then questions: two-step reasoning (figure 6 of the paper)."""
        n = self.number()
        document = [self.labels(n)] if self.random.random() < 0.6 else []
        document.append(self.caption(n))
        for _ in range(self.random.choice((1, 1, 1, 2))):
            document += self._after_separator(self.question_and_answer(n))
        return document

    def comparison(self) -> Document:
        """Two numbers, as labels or captions, and a question that compares them."""
        n = self.number()
        m = n if self.random.random() < 0.5 else self.other(n)
        document = []
        shown = self.random.random() < 0.6
        for k in (n, m):
            if shown:
                document.append(self.labels(k))
            if not shown or self.random.random() < 0.15:
                document.append(self.caption(k) + self.separator())
        same = n == m
        more = self.random.choices(("same", "differ", "larger", "smaller", "sum"), (12, 3, 3, 2, 1))[0]
        if more == "same":
            text, answer = (
                self.pick(
                    (
                        "Is it the same number?",
                        "Are they the same number?",
                        "Are they the same?",
                        "The same number?",
                        "the same number?",
                        "Is it the same?",
                        "Do they match?",
                    )
                ),
                yes(same),
            )
        elif more == "differ":
            text, answer = (
                self.pick(("Same or different?", "Are they the same or different?", "same or different?")),
                "same" if same else "different",
            )
        elif more == "larger":
            text, answer = (
                self.pick(("Which is larger?", "Which number is larger?", "Which of the two is larger?")),
                "both" if same else NUMBERS[max(n, m)],
            )
        elif more == "smaller":
            text, answer = (
                self.pick(("Which is smaller?", "Which number is smaller?", "Which of the two is smaller?")),
                "both" if same else NUMBERS[min(n, m)],
            )
        else:
            text, answer = "What is the sum?", NUMBERS[n + m] if n + m <= 20 else "more"
        if self.random.random() < 0.65:
            text = f"Q: {text} A:"
        if not shown:
            document[-1] = document[-1].rstrip()
            text = self.separator() + text
        elif self.random.random() < 0.3:
            text = f" {text}"
        return [*document, text, f" {answer}"]

    def few_shot_examples(self) -> Document:
        """Several questions with answers, each about another number; often the same question each time."""
        document: Document = []
        captioned = self.random.random() < 0.2
        in_text = self.random.random() < 0.4
        same_question = self.random.random() < 0.6
        seed = self.random.random()
        for i in range(self.random.randint(2, 5)):
            n = self.number()
            context = self.caption(n) + self.separator() if in_text else self.labels(n)
            if captioned:
                context, exchange = self.labels(n), [self.caption(n)]
            elif same_question:
                wanted = random.Random(seed)
                asking = Writer(0)
                asking.random = wanted
                exchange = list(asking.question(n))
            else:
                exchange = self.question_and_answer(n)
            if i:
                document.append("\n")
            document += [context, *exchange]
        return document

    def facts(self) -> Document:
        """Statements about a number."""
        n, m = self.number(), self.number()
        word, than = NUMBERS[n], NUMBERS[m]
        order = "larger than" if n > m else "smaller than" if n < m else "equal to"
        facts = [
            f"{word.capitalize()} is {parity(n)}.",
            f"The number {word} is {parity(n)}.",
            f"{word.capitalize()} is {order} {than}.",
            f"{n} is written {word}.",
            f"The digit {n} is {a(word)}.",
        ]
        if n < 20:
            facts += [f"After {word} comes {NUMBERS[n + 1]}.", f"{word.capitalize()} comes before {NUMBERS[n + 1]}."]
            facts.append(f"Q: Which number comes next after {word}? A: {NUMBERS[n + 1]}")
        if n:
            facts += [f"Before {word} comes {NUMBERS[n - 1]}.", f"{word.capitalize()} comes after {NUMBERS[n - 1]}."]
        if n + m <= 20:
            facts.append(f"{word.capitalize()} and {than} make {NUMBERS[n + m]}.")
            facts.append(f"Q: What is {word} plus {than}? A: {NUMBERS[n + m]}")
        facts.append(f"Q: Is {word} odd or even? A: {parity(n)}")
        facts.append(f"Q: Which is larger, {word} or {than}? A: {NUMBERS[max(n, m)]}")
        return [" ".join(self.random.sample(facts, self.random.randint(1, 3)))]

    def counting(self) -> Document:
        """Counting up, down, in twos, or in tens."""
        kind = self.random.randrange(4)
        if kind == 3:
            return [f"{self.pick(('Ten, twenty', 'Tens: twenty'))}, {', '.join(TENS)}."]
        first, step = self.random.randrange(15), 2 if kind == 2 else 1
        words = [NUMBERS[i] for i in range(first, min(21, first + 6 * step), step)]
        return [", ".join(reversed(words) if kind == 1 else words) + "."]

    def other_caption(self) -> Document:
        """Captions of other things than numbers."""
        thing = self.pick(
            (self.pick(OBJECTS), self.pick(SHAPES), f"{self.pick(COLOURS)} {self.pick(OBJECTS + SHAPES)}")
        )
        word = thing.split()[-1]
        options = (
            ([f"{self.pick(PICTURES)} of {a(thing)}."], f" {word}"),
            ([f"{self.pick(PICTURES)} of {a(thing)} {self.pick(PLACES)}."], f" {word}"),
            ([f"{self.pick(PICTURES)} of {a(self.pick(NUMBERS))} and {a(self.pick(NUMBERS))}."], ""),
            ([f"A recording of {self.pick(NOISES)}."], ""),
            ([f"{self.pick(SPEAKERS)} is speaking."], ""),
            ([f"A {self.pick(WAVES)} wave."], f" {self.pick(WAVES)} signal"),
            ([f"A signal that is {self.pick(SIGNALS)}."], ""),
            ([f"The signal is {self.pick(SIGNALS)} and {self.pick(SIGNALS)}."], ""),
            ([f"Something moves {self.pick(SIDES)}."], ""),
            ([f"The obstacle is {self.pick(SIDES)}, the road is {self.pick(('clear', 'blocked'))}."], ""),
            ([f"{self.pick(PICTURES)} of {a(thing)}.", " Q: What is this?", " A:", f" {a(word)}"], f" {word} {word}"),
            (["Q: Who is speaking? A:", f" {self.pick(SPEAKERS)}"], ""),
        )
        document, labels = self.random.choice(options)
        return [labels, *document] if labels and self.random.random() < 0.5 else document

    def sentences(self) -> Document:
        """Sentences about people and things."""
        thing = f"{self.pick(COLOURS)} {self.pick(OBJECTS)}"
        who = self.pick((*SPEAKERS, "The man", "The woman", "The child", "She", "He"))
        options = (
            f"{who} {self.pick(VERBS)} {a(thing)} {self.pick(PLACES)}.",
            f"There are {self.pick(NUMBERS[2:])} {self.pick(OBJECTS[:7])}s {self.pick(PLACES)}.",
            f"The {self.pick(OBJECTS)} is {self.pick(COLOURS)}.",
            f"It is {self.pick(('warm', 'cold', 'dry', 'wet', 'late', 'early'))} today.",
        )
        return [" ".join(self.random.sample(options, self.random.randint(1, 2)))]


def documents(seed: int) -> Iterator[Document]:
    """An infinite sequence of documents; the same seed gives the same documents."""
    writer = Writer(seed)
    while True:
        yield writer.document()
