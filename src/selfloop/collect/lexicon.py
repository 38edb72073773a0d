"""The words that text negatives swap: classes of things that exclude each other, in English.

A class is one string: "dog|puppy, cat|kitten, horse". A thing may become any other of its class;
what is joined by "|" is one thing by several names and never stands in for itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from selfloop.roles import SelfloopError

Classes = tuple[str, ...]

ENTITIES: Classes = (
    "man|guy|gentleman, woman|lady, boy, girl",
    "child|kid, adult", "baby|toddler|infant, teenager",
    "surfer, skier, skateboarder|skater, snowboarder, cyclist|biker",
    "chef|cook, waiter|waitress, doctor, policeman|police officer, firefighter, farmer",
    "player, referee|umpire, coach", "student, teacher",
    "dog|puppy, cat|kitten, horse|pony, cow|bull, sheep|lamb, elephant, bear, zebra, giraffe, "
    "goat, pig, bird|pigeon|seagull|parrot|duck|goose|owl, monkey, lion, tiger, rabbit, deer, "
    "ostrich",
    "person, dog, monkey, robot, statue",
    "car|sedan|taxi, bus, truck|pickup truck|lorry, bicycle|bike, motorcycle|motorbike|scooter, "
    "train, boat|sailboat|ship, airplane|plane|jet, helicopter, tractor, van, carriage, ambulance",
    "traffic light|stoplight, fire hydrant|hydrant, stop sign, parking meter, bench, mailbox, "
    "street sign, lamp post|streetlight",
    "apple, banana, orange, pizza, cake, sandwich, carrot, egg, hot dog|hotdog, donut|doughnut, "
    "cookie, burger|hamburger, salad, pear, strawberry, tomato, potato, onion",
    "broccoli, cauliflower, rice, pasta|spaghetti, cheese, bread, soup",
    "chair|armchair, table|dining table|desk, couch|sofa, bed, shelf|bookshelf, cabinet|cupboard, "
    "stool, ottoman",
    "oven|stove, microwave, refrigerator|fridge, toaster, sink, dishwasher, washing machine",
    "toilet, bathtub|tub, urinal",
    "television|tv, laptop|computer, keyboard, mouse, remote|remote control, "
    "cell phone|phone|cellphone|smartphone, camera, radio, lamp",
    "cup|mug, bottle, bowl, plate|dish, fork, spoon, knife, wine glass|glass, pan, tray, urn",
    "circle, square, triangle, star, ellipse|oval, hexagon, rectangle",
    "frisbee, kite, sports ball|ball|soccer ball|tennis ball|basketball, skateboard, surfboard, "
    "snowboard, baseball bat, baseball glove, tennis racket|racket|racquet, skis",
    "backpack, umbrella, handbag|purse, suitcase, tie|necktie, hat|cap, helmet, scarf",
    "book|magazine, clock, vase, scissors, teddy bear|stuffed animal, hair drier|hair dryer, "
    "toothbrush, candle, pillow, towel, basket, box, axe",
    "potted plant|houseplant|plant, flower, tree, bush",
    "kitchen, bathroom|restroom, bedroom, living room, office, garage",
    "beach, mountain, desert, forest", "street|road|sidewalk, river, field|meadow",
    "house|building, bridge, tower, church", "door, window, fence, wall",
    "shirt, jacket|coat, dress, sweater, apron",
)
"""All 80 names of COCO are among these, and their plurals."""

ATTRIBUTES: Classes = (
    "red, blue, green, yellow, black, white, brown, grey|gray, purple|violet, pink, orange, beige, "
    "silver, golden",
    "small|little|tiny, large|big|huge|giant", "tall, short", "long, short", "old|elderly, young",
    "open, closed", "empty, full", "wet, dry", "clean, dirty|muddy", "bright, dark",
    "wooden, metal|metallic, plastic, leather, stone, brick, concrete, paper, rubber",
    "striped, dotted|spotted, checkered|plaid, plain", "round|circular, square, rectangular",
    "happy|smiling, sad|crying", "sunny, rainy, cloudy|overcast, snowy", "hot, cold|icy",
    "broken, intact", "thick, thin", "wide, narrow", "fresh, rotten", "sliced|chopped, whole",
    "ripe, unripe", "curly, straight", "asleep|sleeping, awake", "parked, moving",
    "crowded|busy, deserted", "modern, ancient|antique", "fluffy|furry, hairless", "shiny, dull",
    "grassy, sandy, rocky", "lit, unlit", "raw, cooked|baked|grilled", "wild, tame",
)

RELATIONS: Classes = (
    "left of, right of", "on the left, on the right", "to the left, to the right",
    "above|over, below", "in front of, behind", "inside|in, outside",
    "on top of|on|atop, underneath|under|beneath",
    "next to|near|beside|close to|alongside|by|at|against, far from|away from",
    "into, out of", "onto, off of", "through|across, around", "up, down", "with, without",
    "surrounded by, far from", "covered in|covered with, free of", "attached to, detached from",
    "sitting, standing, lying|laying", "walking, running|jogging", "riding, pushing",
    "holding, dropping", "wearing, carrying", "eating, cooking", "drinking, pouring",
    "looking at|watching, ignoring", "playing, sleeping", "flying, floating", "jumping, crawling",
    "hanging, leaning", "pulling, chasing", "cutting|slicing, washing", "grazing, resting",
    "reading, writing", "driving, parking", "surfing, swimming", "skiing, snowboarding",
    "sits, stands, lies", "walks, runs", "rides, pushes", "holds, drops", "wears, carries",
    "eats, cooks", "looks at|watches, ignores", "flies, floats", "jumps, crawls",
)

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
           "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
           "nineteen", "twenty", "thirty", "forty", "fifty")

TWO_SENSES = frozenset({"orange", "square", "tie", "remote", "metal", "plastic", "leather", "stone",
                        "brick", "concrete", "paper", "rubber", "silver"})
"""Nouns that are adjectives or verbs as well: taken for a noun only where they stand like one."""

LOOSE = frozenset({"on", "in", "at", "by", "over", "under", "up", "down", "against", "with",
                   "through", "across", "around", "into", "onto", "near", "inside", "outside"})
"""Relations only where a thing follows: "on the table", and neither "on Monday" nor "turned on"."""

_IRREGULAR = {"man": "men", "woman": "women", "sheep": "sheep", "deer": "deer", "knife": "knives",
              "shelf": "shelves", "bookshelf": "bookshelves", "scarf": "scarves", "mouse": "mice",
              "goose": "geese", "person": "people", "child": "children", "policeman": "policemen",
              "gentleman": "gentlemen", "tomato": "tomatoes", "potato": "potatoes",
              **{w: w for w in ("broccoli", "cauliflower", "rice", "pasta", "spaghetti", "cheese",
                                "bread", "soup", "skis", "scissors")}}
_ONLY_PLURAL = ("skis", "scissors")


def plural(word: str) -> str:
    """The plural of an English noun; of several words, that of the last."""
    before, _, last = word.rpartition(" ")
    if last in _IRREGULAR:
        made = _IRREGULAR[last]
    elif re.search(r"[^aeiou]y$", last):
        made = last[:-1] + "ies"
    else:
        made = last + ("es" if last.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{before} {made}".strip()


def takes_an(word: str) -> bool:
    """Whether "an" stands before it, and not "a": by its sound, as far as letters tell."""
    return (word[:1].lower() in tuple("aeiou") and not re.match(r"(?i)uni|use|usu|eu|one\b|ur[ie]n",
                                                               word)) or word.startswith("hour")


@dataclass(frozen=True)
class Named:
    """One form of a thing: what it is called in its class, and the forms that it may become."""

    thing: str
    choices: tuple[str, ...]
    plural: bool = False


@dataclass(frozen=True)
class Lexicon:
    """What may be swapped for what. `dataclasses.replace(ENGLISH, entities=...)` changes a part."""

    entities: Classes = ENTITIES
    attributes: Classes = ATTRIBUTES
    relations: Classes = RELATIONS
    numbers: tuple[str, ...] = NUMBERS

    def __post_init__(self) -> None:
        for of in (*self.entities, *self.attributes, *self.relations):
            if len(things := _parsed(of)) < 2 or not all(all(names) for names in things):
                raise SelfloopError(f"Lexicon: the class {of!r} needs two things or more, such as "
                                    '"dog|puppy, cat, horse"')

    @cached_property
    def nouns(self) -> dict[str, Named]:
        """Every entity by its form, in singular and plural, in small letters."""
        found: dict[str, Named] = {}
        for of in self.entities:
            things = _parsed(of)
            for names in things:
                others = [o[0] for o in things if o is not names]
                single = tuple(o for o in others if o not in _ONLY_PLURAL)
                several = tuple(plural(o) for o in others)
                for name in names:
                    if name not in _ONLY_PLURAL:
                        found.setdefault(name, Named(names[0], single))
                    found.setdefault(plural(name), Named(names[0], several, plural=True))
        return found

    @cached_property
    def adjectives(self) -> dict[str, Named]:
        """Every attribute."""
        return _others(self.attributes)

    @cached_property
    def links(self) -> dict[str, Named]:
        """Every relation."""
        return _others(self.relations)


def _parsed(of: str) -> list[tuple[str, ...]]:
    """The things of a class, each by all its names."""
    return [tuple(name.strip().lower() for name in thing.split("|")) for thing in of.split(",")]


def _others(classes: Classes) -> dict[str, Named]:
    """Each word with the first names of the other things of its class; the first class counts."""
    found: dict[str, Named] = {}
    for things in map(_parsed, classes):
        for names in things:
            for name in names:
                found.setdefault(name, Named(names[0], tuple(
                    o[0] for o in things if o is not names)))
    return found


ENGLISH = Lexicon()
