"""Everyday sentences from a small grammar of our own: what people say to an assistant and to one another.

Every slot is filled from a shuffled deck that is dealt out before it is shuffled again, so a few hundred
sentences use all of the few hundred words about equally often. Which split a sentence belongs to is
decided by a hash of its words: no test sentence can occur in training, whatever the counts and seeds.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator

from tiny_align_jax.types import DataError

# Of 20 sentences, by hash: 2 are for validation and 3 for the test.
_SPLIT_OF_HASH = ("validation",) * 2 + ("test",) * 3 + ("train",) * 15
# Draws in a row that give nothing new before a grammar counts as used up.
_MAX_REJECTED = 2000

DECKS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "activity": "swimming cooking dancing reading running singing fishing skiing hiking shopping "
        "climbing drawing gardening",
        "adjective": "big small old new dirty clean heavy empty broken beautiful expensive cheap strange "
        "wooden round square tiny wet soft sharp",
        "animal": "bear bird cat cow dog duck elephant frog goat horse lion monkey mouse pig rabbit "
        "sheep snake tiger turtle wolf",
        "body": "back head knee shoulder stomach tooth finger ankle neck arm",
        "bought": "bought found lost broke sold forgot carried washed borrowed dropped repaired painted",
        "city": "Boston Chicago London Paris Rome Berlin Madrid Tokyo Sydney Toronto Dublin Vienna",
        "color": "red blue green yellow black white brown purple pink silver gray golden",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "device": "lamp fan heater television radio oven printer camera computer dishwasher speaker",
        "digit": "zero one two three four five six seven eight nine",
        "drink": "coffee tea milk juice water lemonade cocoa soda",
        "feeling": "happy hungry tired thirsty angry afraid lonely excited proud nervous sleepy busy",
        "food": "apples bananas bread butter cheese chicken cookies eggs fish honey lemons noodles "
        "onions oranges pasta pepper pizza potatoes rice salad salt soup sugar tomatoes yogurt carrots",
        "hour": "one two three four five six seven eight nine ten eleven twelve",
        "job": "baker driver farmer nurse painter pilot sailor singer writer waiter lawyer carpenter",
        "language": "English French German Spanish Italian Japanese Chinese Russian",
        "minute": "ten fifteen twenty thirty forty fifty",
        "month": "January February March April May June July August September October November "
        "December",
        "music": "jazz rock piano folk dance classical guitar country",
        "name": "Anna Ben Clara David Emma Frank Grace Henry Julia Kevin Laura Martin Nina Oscar Paula "
        "Robert Sarah Thomas Victor Wendy",
        "number": "two three four five six seven eight nine ten eleven twelve thirteen fifteen sixteen "
        "eighteen twenty thirty forty fifty sixty ninety",
        "object": "book bag bottle box bicycle chair clock coat cup guitar hat jacket key knife letter "
        "map phone picture pencil shirt spoon table ticket umbrella wallet basket mirror blanket",
        "person": "mother father sister brother uncle aunt teacher doctor neighbor cousin friend boss "
        "grandmother grandfather daughter son",
        "place": "airport bank beach bridge church cinema farm forest hospital hotel library market "
        "museum park restaurant river school shop station theater village bakery pharmacy castle",
        "plural": "books cups chairs keys letters photos tickets pencils bottles boxes plates flowers "
        "stamps candles balloons",
        "preposition": "behind under beside inside above near",
        "room": "kitchen bedroom bathroom garage hallway garden office basement attic balcony",
        "sport": "football tennis basketball hockey golf chess baseball volleyball",
        "street": "Oak Maple Cedar Mill Hill Lake Queen Victoria",
        "subject": "history science music geography art math biology physics",
        "switch": "on off",
        "time": "today tonight tomorrow",
        "transport": "bus train boat plane ferry",
        "vehicle": "car truck van taxi tractor motorcycle",
        "weather": "rain snow wind fog sunshine thunder",
        "when": "morning afternoon evening winter summer",
    }.items()
}

# {a} becomes 'a' or 'an' by the next word; {food.1} and {food.2} are two different draws.
TEMPLATES: tuple[str, ...] = (
    # commands to an assistant
    "Please turn {switch} the {device} in the {room}.",
    "Turn {switch} the {color} {device}.",
    "Set an alarm for {hour} {minute} on {day}.",
    "Wake me up at {hour} {minute}.",
    "Start a timer for {number} minutes.",
    "Remind me to call my {person} on {day}.",
    "Send a message to {name} and {name.2}.",
    "Call {name} at the {place}.",
    "Play some {music} music in the {room}.",
    "Stop the {music} music, please.",
    "Add {food} and {food.2} to the shopping list.",
    "Order {number} {plural} for my {person}.",
    "Show me the way to the {place}.",
    "Find a cheap hotel near the {place} in {city}.",
    "Book a table for {number} people on {day}.",
    "Read me the news about {subject}.",
    "Open the {room} door for {name}.",
    "Translate this letter into {language}.",
    "Take a picture of the {animal} {preposition} the {object}.",
    "Put the {color} {object} {preposition} the {object.2}.",
    # questions
    "What is the weather like in {city} {time}?",
    "Will there be {weather} in {city} on {day}?",
    "How far is it from {city} to {city.2}?",
    "Where did you put my {color} {object}?",
    "When does the {transport} to {city} leave?",
    "How many {plural} do we have in the {room}?",
    "Who left the {adjective} {object} in the {room}?",
    "Do you want {drink} or {drink.2} with your {food}?",
    "Can you help my {person} with the {device}?",
    "Does {name} speak {language} or {language.2}?",
    "Is there {a} {place} near the {place.2}?",
    "Why is {name} so {feeling} {time}?",
    "Have you ever seen {a} {color} {animal}?",
    "Could you bring me some {food} and {drink}?",
    "Is your birthday in {month} or in {month.2}?",
    # short statements
    "My {person} works as {a} {job} in {city}.",
    "{name} {bought} {a} {adjective} {object} at the {place}.",
    "I {bought} {number} {plural} in {city} last {month}.",
    "My {body} hurts, and I feel {feeling}.",
    "The {animal} is sleeping {preposition} the {adjective} {object}.",
    "A {color} {animal} ran across the {place}.",
    "We saw {number} birds and {a} {animal} near the {place}.",
    "{name} and {name.2} play {sport} every {day}.",
    "She studies {subject} and likes {activity}.",
    "My {person} loves {activity} in the {when}.",
    "The {job} drives {a} {adjective} {color} {vehicle}.",
    "They went to {city} by {transport} last {month}.",
    "There was a lot of {weather} in {month}.",
    "I would like {food} with {food.2}, please.",
    "This {adjective} {object} belongs to {name}.",
    "Our {person} was {feeling} after the {sport} game.",
    "The {place} is closed on {day}, but the {place.2} is open.",
    "He drinks {drink} and eats {food} in the {when}.",
    "The {device} in the {room} is {adjective}.",
    # numbers and names
    "My number is {digit} {digit.2} {digit.3} {digit.4}.",
    "The code is {digit} {digit.2} {digit.3} {digit.4} {digit.5}.",
    "{name} lives at number {number}, {street} Street.",
    "My name is {name}, and I am {number} years old.",
    "The {job} is called {name}.",
    "It is {hour} {minute} in {city}.",
    "The {transport} number {number} goes to the {place}.",
    "Your ticket costs {number} dollars and {minute} cents.",
)  # fmt: skip
_SLOT = re.compile(r"\{(\w+)(?:\.\d)?\}")


def normalized(sentence: str) -> str:
    """The sentence's words alone: what decides its split, and whether it is the same as another."""
    return " ".join(re.findall(r"[a-z0-9']+", sentence.lower()))


def split_of(sentence: str) -> str:
    """'train', 'validation' or 'test', by a hash of the sentence's words."""
    digest = hashlib.sha256(normalized(sentence).encode()).digest()
    return _SPLIT_OF_HASH[digest[0] % len(_SPLIT_OF_HASH)]


def generate(split: str, count: int, seed: int) -> list[str]:
    """`count` different sentences of `split` from the grammar, the same for the same seed.

    Raises:
        DataError: the grammar has no more that are new.
    """
    return _take(_deal(random.Random(f"{seed} {split}")), split, count)


def select(sentences: Iterable[str], split: str, count: int) -> list[str]:
    """The first `count` different sentences of `split` among given ones.

    Raises:
        DataError: there are not that many.
    """
    return _take((s.strip() for s in sentences if normalized(s)), split, count)


def _take(candidates: Iterator[str], split: str, count: int) -> list[str]:
    taken: dict[str, str] = {}
    rejected = 0
    while len(taken) < count and rejected < _MAX_REJECTED:
        sentence = next(candidates, None)
        if sentence is None:
            break
        if split_of(sentence) == split and normalized(sentence) not in taken:
            taken[normalized(sentence)] = sentence
            rejected = 0
        else:
            rejected += 1
    if len(taken) < count:
        raise DataError(
            f"only {len(taken)} different {split} sentences, {count} were asked for; ask for fewer or "
            "give a longer text in dataset.synthetic.sentences"
        )
    return list(taken.values())


def _deal(rng: random.Random) -> Iterator[str]:
    """Endless sentences; templates and words come from decks."""
    templates = _deck(TEMPLATES, rng)
    decks = {slot: _deck(words, rng) for slot, words in DECKS.items()}
    while True:
        template = next(templates)
        slots = {m.group(0): m.group(1) for m in _SLOT.finditer(template)} | {"{a}": "a"}
        sentence = template
        used: dict[str, set[str]] = {}
        for placeholder, slot in slots.items():
            if placeholder == "{a}":
                continue
            taken = used.setdefault(slot, set())
            word = next(w for w in decks[slot] if w not in taken)
            taken.add(word)
            sentence = sentence.replace(placeholder, word)
        yield re.sub(r"\{a\} (\w)", _article, sentence)


def _deck(cards: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """Deals all cards in a random order, again and again."""
    while True:
        yield from rng.sample(cards, len(cards))


def _article(match: re.Match[str]) -> str:
    return ("an " if match.group(1) in "aeiouAEIOU" else "a ") + match.group(1)
