"""Word pools for the generated dialogues, each split into a training and an evaluation half.

Every pool is cut deterministically: one entry in five is kept for evaluation and is never seen in training. Beside the
pools, `Lexicon` invents words, codes, numbers, dates and addresses, so that copying is learnt for any spelling.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

NAMES = """Ada Bob Carla Dmitri Elena Farid Grace Hassan Ingrid Jonas Kavya Liam Mona Nadia Oscar Priya Quentin Rosa
Samir Tina Uma Viktor Wendy Xavier Yara Zoe Alice Bruno Chloe Diego Emma Felix Gita Hugo Irene Jack Karin Leo Maya
Noah Olga Pablo Ravi Sofia Tom Ursula Vera Walter Yusuf Zara Anton Bella Cyrus Dora Eli Fiona Gus Helga Ivan Julia Kurt
Lena Marco Nina Otto Petra Rui Stella Theo Ulf Vince Willa Yan Amir Beth Colin Dana Erik Flora George Hana Ines Jamal
Kira Lars Mira Nils Olivia Paul Rita Sven Tara Umar Violet Will Yuki Abel Clara David Eva Frank Gloria Henry Iris James
Kate Louis Maria Nora Owen Pia Rex Sara Tim Anna Ben Cora Dan Ella Fred Gina Hal Isla Jim Ken Lucy Max Nell Peter Rob
Sue Ted Victor Zack Mei Wei Lin Chen Hiro Aiko Kofi Ama Tariq Leila Omar Fatima Sana Bilal Jun Min Soo""".split()

PLACES = """Paris London Tokyo Berlin Madrid Rome Lisbon Vienna Prague Oslo Cairo Lima Quito Delhi Mumbai Seoul Beijing
Sydney Perth Boston Chicago Denver Dallas Seattle Austin Miami Toronto Montreal Dublin Athens Warsaw Budapest Helsinki
Stockholm Copenhagen Brussels Zurich Geneva Milan Naples Lyon Nice Munich Hamburg Porto Seville Krakow Riga Vilnius
Tallinn Kyoto Osaka Hanoi Bangkok Jakarta Manila Lagos Nairobi Accra Tunis Dakar Havana Bogota Santiago Caracas Ottawa
Phoenix Houston Portland Detroit Atlanta Leeds Bristol Glasgow Cardiff Belfast Bergen Malmo Turin Genoa Basel Graz Bonn
Cologne Leipzig Ghent Nantes Lille Toulouse Valencia Bilbao Ankara Izmir Tehran Baghdad Amman Doha Dubai Karachi Lahore
Dhaka Kabul Brazil France Japan Norway Canada Mexico Kenya Egypt Spain Peru Chile Iceland Finland""".split()
PLACES += ["New York", "San Diego", "Los Angeles", "Hong Kong", "Cape Town", "Rio de Janeiro", "Buenos Aires", "Tel Aviv"]
PLACES += ["San Jose", "New Delhi", "Las Vegas", "El Paso", "Abu Dhabi", "Kuala Lumpur", "Santa Fe", "Palo Alto"]

THINGS = """apple banana bread butter cheese chicken chocolate coffee garlic honey lemon milk onion orange pasta pepper
pizza potato rice salad salmon soup spinach sugar tomato yogurt book lamp chair table bicycle guitar piano violin camera
phone laptop jacket shoes umbrella candle mirror blanket pillow ladder hammer garden rocket robot castle dragon planet
river mountain forest desert island ocean bridge tower museum theater library market station harbor engine battery
carpet basket bottle button ticket wallet pencil paper window kitchen mushroom walnut peach cherry plum melon cabbage
carrot turnip pumpkin barley oats lentil ginger vanilla cinnamon saffron velvet copper silver marble amber ivory""".split()

COLORS = """red blue green yellow purple orange pink brown black white gray teal violet indigo maroon navy olive cyan
magenta beige turquoise lavender crimson scarlet gold silver""".split()

TOPICS = """jazz chess football tennis cooking painting history physics music poetry gardening hiking sailing robotics
astronomy biology chemistry economics politics fashion cinema theater swimming running cycling climbing dancing knitting
photography archery philosophy geology baseball cricket boxing rowing skiing surfing yoga opera""".split()

JOBS = """baker teacher nurse pilot farmer lawyer painter doctor plumber writer driver chef tailor singer actor dentist
engineer carpenter librarian mechanic gardener soldier waiter barber cashier florist jeweler judge sailor""".split()

ANIMALS = """dog cat parrot hamster rabbit turtle goldfish pony snake lizard ferret canary goat duck horse hedgehog
gecko mouse pigeon tortoise""".split()

LANGUAGES = """French German Spanish Italian Japanese Chinese Korean Arabic Hindi Russian Portuguese Dutch Swedish
Polish Greek Turkish Finnish Danish Hebrew Thai Latin Czech""".split()

PHRASES = """I will be late|see you tomorrow|the meeting is cancelled|call me back|dinner is ready|happy birthday|
buy milk and eggs|water the plants|the report is done|pick up the kids|thank you for the gift|good luck today|
we need more time|the train is delayed|lunch at noon|send the files|the door is open|take out the trash|
finish the slides|pay the rent|walk the dog|call the dentist|the party starts at nine|bring a warm coat|
read chapter five|clean the kitchen|wash the car|book the hotel|where are you|I am on my way|good morning team|
check the oven|feed the cat|renew the passport|the code is ready|no news yet|we won the game|it works now|
the server is down|please reply soon|do not forget the keys|meet me at the station""".replace("\n", "").split("|")

# what the user may call an attribute of theirs; the value pool follows
ATTRIBUTES = """favorite color:color|favourite color:color|car color:color|name:name|city:place|hometown:place|job:job|
pet:animal|favorite food:thing|favorite animal:animal|hobby:topic|favorite sport:topic|sister's name:name|
brother's name:name|mother's name:name|dog's name:name|cat's name:name|boss:name|best friend:name|neighbor:name|
age:int|lucky number:int|room number:int|shoe size:int|password hint:word|favorite book:thing|native language:language|
favorite language:language|street:word|company:word|school:word|team:word|nickname:word|birthplace:place|
favorite city:place|teacher:name|doctor:name|badge number:code|order number:code|flight number:code|seat:code|
favorite drink:thing|favorite fruit:thing|wife's name:name|husband's name:name|son's name:name|daughter's name:name|
house color:color|gate:code|locker number:int|surname:word|username:word|favorite season:word|destination:place|
cousin's name:name|favorite singer:name|major:topic|band:word|village:word|project:word|uncle's name:name|
phone color:color|coach:name|license plate:code|favorite dessert:thing|country:place|email:email""".replace("\n", "").split("|")

# verbs and nouns that name a tool; a request repeats them
VERBS = """get find book create delete send update check cancel search play schedule order rent open close start stop
count list show save load print share copy move rename remove add buy sell track measure scan sort filter merge split
compress encrypt archive approve reject assign invite block mute publish draft review verify register enroll reserve
fetch export import download upload pause resume lock unlock paint clean repair inspect deliver pack collect submit
estimate compare summarize rank tag label plan design test deploy restart monitor borrow return donate pay refund
transfer record log lookup query read write compute convert locate describe activate disable enable reset""".split()

NOUNS = """invoice playlist ticket room table flight hotel recipe song movie photo file folder report contract meeting
event task note reminder alarm timer message email letter package parcel order product item customer user account profile
password device sensor camera printer server database backup network router website page article post comment review
course lesson exam grade student teacher class project team budget expense payment loan policy claim license permit
vehicle car truck bike train bus taxi route map address garden plant tree lawn pool heater lamp door window garage
elevator oven fridge robot drone battery engine pump valve tank filter cable antenna rocket satellite planet star
weather forecast temperature price stock currency salary tax coupon gift menu dish drink cake bread snack game match
score player tournament book chapter poem story quote joke word sentence language symbol number formula color shape
image video podcast channel station radio museum library gallery theater concert festival tour guide doctor nurse
patient appointment prescription medicine allergy workout diet calorie sleep heartbeat parcel warehouse shelf""".split()

# parameter names and the kind of value that they take
PARAMETERS = """city:place|location:place|place:place|destination:place|origin:place|country:place|town:place|
name:name|person:name|recipient:name|guest:name|author:name|owner:name|artist:name|contact:name|employee:name|
title:thing|item:thing|product:thing|object:thing|ingredient:thing|keyword:thing|subject:topic|topic:topic|
category:topic|genre:topic|color:color|language:language|text:phrase|message:phrase|content:phrase|body:phrase|
comment:phrase|query:phrase|date:date|day:date|start_date:date|due_date:date|time:time|start_time:time|code:code|
reference:code|order_id:code|ticket_id:code|serial:code|email:email|address:email|user_id:int|id:int|count:int|
quantity:int|amount:number|price:number|limit:int|size:int|days:int|hours:int|minutes:int|seconds:int|people:int|
nights:int|pages:int|level:int|floor:int|year:int|weight:number|height:number|distance:number|temperature:number|
speed:number|width:number|length:number|rate:number|budget:number|score:number|urgent:bool|public:bool|private:bool|
verbose:bool|recursive:bool|confirmed:bool|insured:bool|express:bool|username:word|password:word|brand:word|model:word|
host:word|label:word|tag:word|folder:word|filename:word|street:word|company:word|department:word|region:word|
mode:enum|size_class:enum|unit:enum|priority:enum|status:enum|format:enum|style:enum|quality:enum|season:enum|
plan:enum|kind:enum|direction:enum""".replace("\n", "").split("|")

ENUMS = [s.split() for s in """small medium large|low normal high|celsius fahrenheit kelvin|open closed pending|
json xml csv|modern classic rustic|draft final|spring summer autumn winter|basic premium|north south east west|
morning afternoon evening|cash card|red green blue|fast slow|hot cold warm|daily weekly monthly|left right|easy hard|
public private hidden|metric imperial|male female|economy business first|asc desc|on off auto|paper plastic glass|
sedan van truck|vegan meat fish|silent loud|bronze silver gold|soft firm|tiny huge|am pm""".replace("\n", "").split("|")]

STATEMENTS = """the sky looks nice|it is raining again|I had a long day|my train was late|that was fun|I am tired|
I am a bit bored|the food was great|we went to the beach|I like that|this is new to me|I just woke up|
I finished my work|that is interesting|it is cold outside|I am hungry|I slept well|today is a good day|
the kids are asleep|that makes sense|I see|okay then|I am back|work was hard today|the game was close""".replace("\n", "").split("|")

QUESTIONS = """who wrote Hamlet|what is the meaning of life|why is the sky blue|how do magnets work|who won the war|
what is the capital of Mongolia|how many stars are there|when was the moon landing|what is love|how do birds fly|
who painted the Mona Lisa|what causes earthquakes|how tall is the tallest building|explain gravity|write me a poem|
tell me a story|what happened in 1969|who is the president|what is photosynthesis|how does a car work|
give me a recipe for soup|write some code|summarize the news|what does this word mean|solve this riddle|
what is quantum physics|how old is the universe|who invented the telephone|teach me to dance|what is a black hole|
recommend a movie|where does tea come from|how deep is the ocean|what is inflation|draw me a picture|
why do cats purr|how is glass made|who discovered America|what is the fastest animal|compose a song""".replace("\n", "").split("|")

SYSTEMS = """You are a helpful assistant.|You are Nano, a small assistant.|Be brief.|You answer questions politely.|
You are a friendly assistant that uses tools when they help.|Answer in one sentence.|You are a careful assistant.|
You help people with everyday tasks.|Use the tools when needed.|You are an assistant in a terminal.|
You are a polite helper. Keep answers short.|Always be kind.|You work for a small company.|Help the user.|
You are a helpful AI assistant. Answer the user's questions.|You are a chatbot.""".replace("\n", "").split("|")

_POOLS: dict[str, list[str]] = {
    "name": NAMES,
    "place": PLACES,
    "thing": THINGS,
    "color": COLORS,
    "topic": TOPICS,
    "job": JOBS,
    "animal": ANIMALS,
    "language": LANGUAGES,
    "phrase": PHRASES,
    "attribute": ATTRIBUTES,
    "verb": VERBS,
    "noun": NOUNS,
    "parameter": PARAMETERS,
    "statement": STATEMENTS,
    "question": QUESTIONS,
    "system": SYSTEMS,
}


def split(pool: list[str], evaluation: bool) -> list[str]:
    """The part of `pool` used for training, or the one fifth held out for evaluation."""
    unique = list(dict.fromkeys(w.strip() for w in pool))
    return [w for i, w in enumerate(unique) if (i % 5 == 3) == evaluation]


@dataclass(frozen=True)
class Parameter:
    """One parameter of an invented tool: its name, JSON type, kind of value, and enum values if it has them."""

    name: str
    kind: str
    choices: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        return {"int": "integer", "number": "number", "bool": "boolean"}.get(self.kind, "string")


class Lexicon:
    """Draws words and values for one side of the split, from a seeded random generator."""

    def __init__(self, rng: random.Random, evaluation: bool = False) -> None:
        self.rng = rng
        self.evaluation = evaluation
        self._pools = {k: split(v, evaluation) for k, v in _POOLS.items()}
        self._enums = [e for i, e in enumerate(ENUMS) if (i % 5 == 3) == evaluation]

    def pick(self, pool: str) -> str:
        return self.rng.choice(self._pools[pool])

    def all(self, pool: str) -> list[str]:
        return self._pools[pool]

    def word(self) -> str:
        """An invented word: syllables, or (one in five) plain random letters."""
        r = self.rng
        if r.random() < 0.2:
            w = "".join(r.choices(string.ascii_lowercase, k=r.randint(3, 9)))
        else:
            onset = ["b", "br", "c", "ch", "d", "dr", "f", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "qu"]
            onset += ["r", "s", "sh", "st", "t", "th", "tr", "v", "w", "x", "y", "z", "", "fl", "sk", "ph"]
            coda = ["", "", "", "n", "r", "l", "s", "t", "x", "m", "nd", "rk", "ck", "st", "ng", "sh"]
            w = "".join(r.choice(onset) + r.choice("aeiouaeiouy") + r.choice(coda) for _ in range(r.choice([1, 2, 2, 2, 3, 3])))
        if len(w) < 3:
            w += r.choice(["lo", "ra", "mi", "nu"])
        return w.capitalize() if r.random() < 0.5 else w.upper() if r.random() < 0.04 else w

    def integer(self) -> int:
        r = self.rng
        return r.choice([r.randint(0, 12), r.randint(2, 99), r.randint(10, 999), r.randint(100, 9999), r.randint(1000, 999999)])

    def number(self) -> int | float:
        r = self.rng
        if r.random() < 0.35:
            return r.randint(1, 999)
        value = round(r.uniform(0, 10 ** r.randint(1, 3)), r.randint(1, 2))
        return -value if r.random() < 0.08 else value

    def code(self) -> str:
        r = self.rng
        letters = "".join(r.choices(string.ascii_uppercase, k=r.randint(1, 3)))
        digits = "".join(r.choices(string.digits, k=r.randint(1, 5)))
        return r.choice([f"{letters}{digits}", f"{letters}-{digits}", f"{digits}{letters}", f"{letters}{digits}{letters[0]}"])

    def date(self) -> str:
        r = self.rng
        days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow tonight".split()
        months = "January February March April May June July August September October November December".split()
        day = r.randint(1, 28)
        iso = f"{r.randint(2020, 2032)}-{r.randint(1, 12):02d}-{day:02d}"
        return r.choice([r.choice(days), iso, f"{r.choice(months)} {day}", f"{day} {r.choice(months)}"])

    def time(self) -> str:
        r = self.rng
        hour, minute = r.randint(0, 23), r.randint(0, 59)
        return r.choice([f"{hour}:{minute:02d}", f"{hour % 12 or 12}:{minute:02d} pm", f"{hour % 12 or 12} am", f"{hour % 12 or 12} pm"])

    def email(self) -> str:
        r = self.rng
        user = r.choice([self.pick("name"), self.word()]).lower()
        return f"{user}@{self.word().lower()}.{r.choice(['com', 'org', 'net', 'io', 'de', 'fr'])}"

    def value(self, kind: str, choices: tuple[str, ...] = ()) -> str | int | float | bool:
        """A value of the kind; one in four names and things is an invented word, so that any spelling is copied."""
        r = self.rng
        if kind == "enum":
            return r.choice(choices)
        if kind == "bool":
            return r.random() < 0.5
        if kind == "int":
            return self.integer()
        if kind in ("number", "code", "date", "time", "email", "word"):
            return getattr(self, kind)()  # type: ignore[no-any-return]
        if kind in ("name", "place", "thing", "topic", "color", "job") and r.random() < 0.3:
            w = self.word()
            return w if kind in ("thing", "topic", "color", "job") and r.random() < 0.5 else w.capitalize()
        chosen = self.pick(kind)
        if kind == "name" and r.random() < 0.15:
            return f"{chosen} {r.choice([self.pick('name'), self.word().capitalize()])}"
        if kind == "phrase" and r.random() < 0.4:
            return " ".join(r.choice([self.pick("thing"), self.word(), self.pick("color")]) for _ in range(r.randint(1, 4)))
        return chosen if r.random() > 0.12 else chosen.lower()

    def parameter(self) -> Parameter:
        """A parameter, real or (one in five) with an invented name."""
        r = self.rng
        name, kind = self.pick("parameter").split(":")
        if r.random() < 0.2:
            name = self.word().lower()
            kind = r.choice(["word", "int", "number", "place", "name", "thing", "bool", "enum", "phrase", "code"])
        choices: tuple[str, ...] = ()
        if kind == "enum":
            base = r.choice(self._enums) if r.random() < 0.7 else [self.word().lower() for _ in range(r.randint(2, 4))]
            choices = tuple(dict.fromkeys(base))
        return Parameter(name, kind, choices)
