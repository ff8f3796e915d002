"""Vocabulary of the synthetic corpus of the bundled language model."""

from __future__ import annotations

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")
SPEAKERS = ("George", "Jackson", "Lucas", "Nicolas", "Theo", "Yweweler", "Anna", "Maria")
PICTURES = ("A picture", "A picture", "A picture", "A photo", "An image", "A drawing", "A sketch", "A scan", "A view")
LOOKS = (
    *("small", "large", "thick", "thin", "black", "white", "blurry", "sharp", "neat", "messy", "dark", "bright"),
    *("round", "slanted", "handwritten", "printed", "single", "old", "new"),
)
SOUNDS = ("loud", "quiet", "clear", "noisy", "short", "long", "slow", "fast", "high", "low", "male", "female")
SHAPES = ("circle", "square", "triangle", "line", "cross", "star", "ring", "dot", "curve", "loop", "box", "arrow")
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "grey", "brown", "orange", "pink", "purple")
OBJECTS = (
    *("cat", "dog", "house", "tree", "bird", "car", "boat", "table", "chair", "cup", "book", "ball", "fish", "horse"),
    *("man", "woman", "child", "hand", "face", "flower", "road", "river", "mountain", "street", "door", "window"),
)
NOISES = ("music", "noise", "silence", "speech", "a tone", "a bell", "a drum", "rain", "wind", "a click", "a hum")
WAVES = ("sine", "square", "triangle", "sawtooth", "flat", "noisy", "rising", "falling", "slow", "fast", "steady")
SIGNALS = ("rising", "falling", "flat", "steady", "noisy", "growing", "shrinking", "going up", "going down", "periodic")
SIDES = ("left", "right", "up", "down", "forward", "back", "near", "far", "above", "below", "inside", "outside")
PLACES = ("in the park", "at home", "on the table", "in the street", "by the river", "at school", "in the garden")
VERBS = ("sees", "has", "likes", "finds", "wants", "holds", "buys", "paints", "draws", "counts")


def a(words: str) -> str:
    """The words with an indefinite article: "a seven", "an eight"."""
    vowel = words[0] in "aeiou" and not words.startswith("one")
    return f"{'an' if vowel else 'a'} {words}"


def parity(n: int) -> str:
    """`"odd"` or `"even"`."""
    return "odd" if n % 2 else "even"


def yes(true: bool) -> str:
    """`"yes"` or `"no"`."""
    return "yes" if true else "no"
