"""What a picture is called: names of concepts, style and background words, and the pairs kept from training.

A caption is a name ("a red apple"), now and then with the words that people put around it ("a picture of a red
apple"), a style ("flat icon of ...") where the picture is not in the default style, and a background where it is not
white ("... on a blue background").
"""
import re
import zlib
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent

STYLE_WORDS = {
    "3d": ["3d", "3d render", "glossy 3d"],
    "flat": ["flat", "flat icon", "flat design"],
    "cartoon": ["cartoon", "shaded cartoon"],
}
DEFAULT_STYLE = "3d"  # what a caption without style words means
WHITE = "white"       # what a caption without a background means
BACKGROUNDS = {
    WHITE: (255, 255, 255),
    "red": (221, 46, 68),
    "yellow": (255, 216, 93),
    "green": (120, 190, 90),
    "blue": (75, 150, 230),
    "purple": (160, 120, 210),
    "black": (24, 24, 28),
    "orange": (244, 144, 12),
    "pink": (248, 180, 200),
    "brown": (160, 100, 70),
    "gray": (150, 150, 155),
}
OPENINGS = ["a picture of {}", "a drawing of {}", "an icon of {}", "an emoji of {}", "an image of {}"]
NO_ARTICLE = re.compile(r"(s|ing|hair|sushi|tofu|bread|rice|ice|money|fire|milk)$")


def with_article(name):
    """The name as it stands in a sentence; see everyday.txt for the marks."""
    if name.startswith("~"):
        return name[1:]
    if name.startswith("the "):
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def bare(name):
    return name.removeprefix("~").removeprefix("the ")


def held_out(label, background):
    """Whether this pair is never trained: one pair of thing and coloured background in eight."""
    return background != WHITE and zlib.crc32(f"{label}/{background}".encode()) % 8 == 0


def everyday():
    """Label -> names, commonest first, in the order of the file."""
    table = {}
    for line in (HERE / "everyday.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            label, names = line.split(":")
            table[label.lower()] = [n.strip() for n in names.split(",")]
    return table


def prompts():
    return (HERE / "prompts.txt").read_text().splitlines()


class Names:
    """The names of every concept: everyday ones first, else the emoji's name and its distinctive keywords."""

    MOST_SHARED = 3  # a keyword carried by more emoji than this says too little

    def __init__(self, concepts):
        known = everyday()
        shared = Counter(k for c in concepts for k in {c["label"], *c["keywords"]})
        taken = {c["label"] for c in concepts} | {bare(n) for names in known.values() for n in names}
        self.of = []
        for c in concepts:
            names = known.get(c["label"])
            if names is None:
                label = c["label"]
                mark = "~" if NO_ARTICLE.search(label) and not label.endswith("ss") else ""
                rare = [k for k in c["keywords"]
                        if shared[k] <= self.MOST_SHARED and k not in taken and not k.isdigit()]
                names = [mark + label, *rare]
            self.of.append(names)

    def canonical(self, concept, background=WHITE, style=DEFAULT_STYLE):
        """The plainest caption: what evaluation ranks pictures against."""
        text = with_article(self.of[concept][0])
        if style != DEFAULT_STYLE:
            text = f"{text}, {STYLE_WORDS[style][0]}"
        return text if background == WHITE else f"{text} on a {background} background"

    def caption(self, concept, style, background, rng):
        """A caption drawn at random."""
        names = self.of[concept]
        name = names[0] if len(names) == 1 or rng.random() < 0.5 else rng.choice(names[1:])
        text = with_article(name) if rng.random() < 0.7 else bare(name)
        if rng.random() < 0.12:
            text = rng.choice(OPENINGS).format(with_article(name))
        if style != DEFAULT_STYLE or rng.random() < 0.08:
            word = rng.choice(STYLE_WORDS[style])
            text = rng.choice(["{1} {2}", "{0}, {1}", "{0} in {1} style"]).format(text, word, bare(name))
        if background != WHITE or rng.random() < 0.08:
            text += rng.choice([" on a {} background"] * 3 + [", {} background", " on {}"]).format(background)
        return text
