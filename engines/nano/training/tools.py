"""Tools for the generated dialogues: everyday ones with natural requests, and invented ones of any name and shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .lexicon import Lexicon, Parameter

Value = str | int | float | bool


@dataclass
class Tool:
    """A tool as a prompt shows it, with a way to make a request for it."""

    name: str
    desc: str
    params: list[Parameter]
    required: list[str]
    param_desc: dict[str, str] = field(default_factory=dict)
    # draws (request text, arguments)
    ask: Callable[[Lexicon], tuple[str, dict[str, Value]]] | None = None
    bare: list[str] = field(default_factory=list)  # requests that leave out the one required parameter
    topic: str = ""
    words: frozenset[str] = frozenset()  # of an everyday tool: all that its names and description say; else its noun

    def schema(self) -> dict[str, Any]:
        """The tool in the OpenAI function format, as a chat template receives it."""
        props: dict[str, Any] = {}
        for p in self.params:
            props[p.name] = {"type": p.type}
            if p.name in self.param_desc:
                props[p.name]["description"] = self.param_desc[p.name]
            if p.choices:
                props[p.name]["enum"] = list(p.choices)
        parameters = {"type": "object", "properties": props, "required": self.required}
        return {"type": "function", "function": {"name": self.name, "description": self.desc, "parameters": parameters}}

    def confusable(self, other: Tool) -> bool:
        """Whether one request could mean either tool. Invented tools that differ in verb or noun are told apart."""
        if self.name == other.name or self.topic == other.topic:
            return True
        return len(self.words) + len(other.words) > 2 and bool(self.words & other.words) and 1 in (len(self.words), len(other.words))


# name alternatives | description | parameters name/alternatives:kind[=enum,..][?] | training requests | held-out requests
KNOWN = """
calculate,calculator,compute|Evaluate an arithmetic expression.|expression,expr,formula:arith|what is {expression}?;{expression};calculate {expression};how much is {expression}?;compute {expression};what's {expression};{expression} = ?;can you work out {expression}?;solve {expression};tell me {expression};do the math: {expression};what does {expression} make?|please evaluate {expression};what do I get for {expression}?;what is the value of {expression}?
roll_dice,roll,dice|Roll dice and add them up.|count,number,n:small?;sides,faces:sides?|roll a die;roll {count} dice;throw {count} dice;roll a die with {sides} sides;roll {count} dice with {sides} sides;throw a dice;roll the dice;roll a {sides} sided die;give me a dice roll;roll {count} {sides}-sided dice;roll {count}d{sides}|toss {count} dice;please throw a die;I want to roll {count} dice with {sides} sides
current_time,clock,get_time|Get the current date and time.||what time is it?;what is the time?;tell me the time;what's the time now?;what day is it today?;what is the date?;what's today's date?;current time;time;do you know what time it is?;which day is it?;what date is it today?|do you have the time?;can you tell me the date?
convert_units,unit_converter,convert|Convert a value from one unit to another.|value,amount,quantity:number;from_unit,source,unit_from:unit;to_unit,target,unit_to:unit|convert {value} {from_unit} to {to_unit};how many {to_unit} are {value} {from_unit}?;what is {value} {from_unit} in {to_unit}?;{value} {from_unit} in {to_unit};how much is {value} {from_unit} in {to_unit}?;{value} {from_unit} to {to_unit};turn {value} {from_unit} into {to_unit};change {value} {from_unit} to {to_unit}|express {value} {from_unit} in {to_unit};how many {to_unit} in {value} {from_unit}?
get_weather,weather,weather_lookup|Get the current weather in a city.|city,location,place:place|what is the weather in {city}?;how is the weather in {city}?;weather in {city};what's the weather like in {city} today?;is it raining in {city}?;tell me the weather for {city};is it cold in {city}?;check the weather in {city};how warm is it in {city}?|do I need an umbrella in {city}?;what weather do they have in {city}?
send_email,email,mail|Send an email.|to,recipient,address:email;subject,title:thing;body,text,message:phrase?|send an email to {to} about {subject};email {to} about {subject};write an email to {to} with subject {subject};send {to} an email about {subject} saying {body};email {to} about {subject} saying {body};write to {to} about {subject} saying {body}|mail {to} about {subject};send an email about {subject} to {to}
set_timer,timer,start_timer|Start a timer.|minutes,duration,mins:int|set a timer for {minutes} minutes;start a timer of {minutes} minutes;timer for {minutes} minutes;set a {minutes} minute timer;give me a {minutes} minute timer;count down {minutes} minutes|I need a timer for {minutes} minutes;start a {minutes} minute timer
set_alarm,alarm,wake_up|Set an alarm.|time,at,when:time|set an alarm for {time};wake me up at {time};alarm at {time};set my alarm to {time};I want to wake up at {time};please wake me at {time}|put an alarm at {time};I need an alarm at {time}
play_music,play,music_player|Play music by an artist.|artist,name,singer:name|play something by {artist};play {artist};play songs by {artist};put on some {artist};play music by {artist};I want to hear {artist};let me listen to {artist}|put on music by {artist};I want to listen to {artist}
translate,translate_text,translator|Translate text into another language.|text,phrase,sentence:phrase;language,target_language,to:language|translate "{text}" to {language};translate {text} into {language};how do you say {text} in {language}?;say {text} in {language};what is {text} in {language}?;put "{text}" into {language}|translate to {language}: {text};give me the {language} for {text}
web_search,search,google|Search the web.|query,q,keywords:query|search for {query};look up {query};google {query};search the web for {query};find information about {query};find {query} on the web;search {query}|look for {query} online;search online for {query}
create_note,note,add_note|Save a note.|text,content,note:phrase|note that {text};make a note: {text};write down {text};take a note saying {text};save a note: {text};note: {text};create a note that says {text}|add a note saying {text};jot down {text}
add_to_list,add_item,shopping_list|Add an item to the shopping list.|item,product,thing:thing;quantity,count,amount:int?|add {item} to the list;put {item} on my shopping list;add {quantity} {item} to the shopping list;I need to buy {item};put {quantity} {item} on the list;add {item} to my shopping list|place {item} on the shopping list;put {item} on the list please
get_stock_price,stock_price,quote|Get the price of a stock.|symbol,ticker,stock:ticker|what is the stock price of {symbol}?;how much is {symbol} stock?;price of {symbol};stock price {symbol};what does a share of {symbol} cost?;how is {symbol} trading?;get the price of {symbol} stock|what is {symbol} stock worth?;check the stock price of {symbol}
book_table,reserve_table,table_booking|Book a table at a restaurant.|restaurant,place,venue:name;people,guests,seats:small;time,at,hour:time|book a table at {restaurant} for {people} people at {time};reserve a table for {people} at {restaurant} at {time};table for {people} at {restaurant} at {time};get a table at {restaurant} at {time} for {people} people;book {restaurant} at {time} for {people}|I want a table for {people} at {restaurant} at {time};reserve a table at {restaurant} for {people} at {time}
book_flight,find_flight,flights|Book a flight.|origin,from_city,start:place;destination,to_city,end:place;date,day,departure:date?|book a flight from {origin} to {destination};fly from {origin} to {destination} on {date};I need a flight from {origin} to {destination} on {date};flight from {origin} to {destination};book me a flight to {destination} from {origin};get me on a flight from {origin} to {destination} on {date}|I want to fly from {origin} to {destination};book a flight to {destination} from {origin} on {date}
define_word,dictionary,define|Look up the meaning of a word.|word,term,entry:noun|what does {word} mean?;define {word};what is the meaning of {word}?;look up the word {word};definition of {word};meaning of {word}|tell me what {word} means;give me the definition of {word}
convert_currency,exchange,currency|Convert an amount of money between currencies.|amount,value,sum:number;from_currency,source,base:money;to_currency,target,quote:money|convert {amount} {from_currency} to {to_currency};how much is {amount} {from_currency} in {to_currency}?;{amount} {from_currency} in {to_currency};exchange {amount} {from_currency} for {to_currency};what are {amount} {from_currency} in {to_currency}?|change {amount} {from_currency} into {to_currency};{amount} {from_currency} to {to_currency}
get_news,news,headlines|Get the latest news about a topic.|topic,subject,about:topic|what is the news about {topic}?;give me news on {topic};latest news about {topic};any news about {topic}?;news on {topic};show me the headlines about {topic}|what's new in {topic}?;tell me the news about {topic}
remind_me,set_reminder,reminder|Set a reminder.|task,text,what:phrase;time,at,when:time|remind me at {time}: {task};set a reminder at {time}: {task};remind me at {time} that {task};reminder for {time}: {task};at {time} remind me: {task}|please remind me at {time} that {task};add a reminder at {time}: {task}
send_message,text_message,message|Send a message to a person.|to,recipient,contact:name;text,message,body:phrase|tell {to}: {text};send a message to {to} saying {text};text {to} that {text};message {to}: {text};send {to} the message {text};tell {to} that {text};let {to} know that {text}|write to {to} that {text};send a message to {to}: {text}
set_light,light_switch,lights|Switch a light on or off.|room,area,where:room;state,power,mode:enum=on,off|turn {state} the light in the {room};switch the {room} light {state};turn the light in the {room} {state};lights {state} in the {room};turn the {room} light {state};switch {state} the {room} light|put the {room} light {state};turn {state} the lights in the {room}
find_recipe,recipe_search,recipes|Find a recipe with an ingredient.|ingredient,food,main:thing|find a recipe with {ingredient};what can I cook with {ingredient}?;give me a recipe for {ingredient};recipe with {ingredient};how do I cook {ingredient}?;I want to cook something with {ingredient}|show me a recipe with {ingredient};which recipe uses {ingredient}?
get_population,population,count_people|Get the number of people who live in a city.|city,place,town:place|how many people live in {city}?;what is the population of {city}?;population of {city};how big is {city}?;tell me the population of {city}|how many inhabitants does {city} have?;number of people in {city}
get_distance,distance,how_far|Get the distance between two cities.|start,origin,from_city:place;end,destination,to_city:place|how far is it from {start} to {end}?;what is the distance from {start} to {end}?;distance between {start} and {end};how far is {end} from {start}?;how many kilometers from {start} to {end}?|tell me the distance between {start} and {end};how long is the way from {start} to {end}?
random_number,pick_number,random|Pick a random number.|low,minimum,start:int;high,maximum,end:int|pick a number between {low} and {high};random number from {low} to {high};give me a random number between {low} and {high};choose a number from {low} to {high}|I want a random number from {low} to {high};draw a number between {low} and {high}
reverse_text,reverse,flip|Reverse a text.|text,string,word:word|reverse {text};spell {text} backwards;reverse the word {text};what is {text} backwards?;flip the text {text};turn {text} around|write {text} backwards;reverse the text {text}
count_letters,letter_count,word_length|Count the letters of a word.|word,text,string:word|how many letters are in {word}?;count the letters in {word};how long is the word {word}?;number of letters in {word}|how many letters does {word} have?;count letters of {word}
get_user,find_user,user_info|Get the record of a user.|user_id,id,number:int|show user {user_id};get user {user_id};who is user {user_id}?;look up user number {user_id};find the user with id {user_id}|give me user {user_id};fetch user number {user_id}
track_package,parcel_status,tracking|Track a package.|code,number,tracking_id:code|where is my package {code}?;track package {code};track {code};what is the status of parcel {code}?;where is parcel {code}?|follow package {code};find my parcel {code}
set_volume,volume,loudness|Set the volume.|level,value,percent:int|set the volume to {level};turn the volume to {level};volume {level};make it louder, volume {level};change the volume to {level}|put the volume at {level};volume to {level}
set_temperature,thermostat,heating|Set the temperature of a room.|room,area,where:room;degrees,temperature,target:number|set the {room} to {degrees} degrees;make it {degrees} degrees in the {room};heat the {room} to {degrees} degrees;set the temperature in the {room} to {degrees}|warm the {room} to {degrees} degrees;I want {degrees} degrees in the {room}
"""

# natural tools that are never trained on
HELD_OUT = """
rent_bike,bike_rental|Rent a bike in a city.|city,where:place;hours,duration:int|rent a bike in {city} for {hours} hours;I want to rent a bike for {hours} hours in {city}
check_pollen,pollen|Check the pollen level in a city.|city,town:place|check the pollen in {city};what is the pollen level in {city}?
water_plant,plant_water|Water a plant with an amount of water.|plant,name:thing;amount,liters:number|water the plant {plant} with {amount} liters;water {plant} with {amount} liters
feed_animal,feeder|Feed an animal.|animal,pet:animal|feed the {animal};please feed my {animal}
read_poem,poem|Read a poem by a poet.|poet,author:name|read a poem by {poet};read me a poem by {poet}
order_pizza,pizza|Order a pizza.|topping,flavor:thing;size,format:enum=small,medium,large|order a {size} pizza with {topping};I want to order a {size} pizza with {topping}
find_parking,parking|Find parking near a place.|place,location:place;hours,stay:int|find parking near {place} for {hours} hours;find me parking in {place} for {hours} hours
lock_door,door_lock|Lock a door.|door,room:room|lock the {door} door;please lock the {door} door
pay_bill,bill_payment|Pay a bill.|bill_id,reference:code;amount,total:number|pay bill {bill_id} of {amount};pay the bill {bill_id} with amount {amount}
get_horoscope,horoscope|Get the horoscope of a person.|person,name:name|get the horoscope of {person};what is the horoscope for {person}?
"""

# requests for everyday tools that leave out the one parameter
BARE = {
    "get_weather": ["what is the weather?", "how is the weather?", "what's the weather like?", "is it raining?", "tell me the weather"],
    "set_alarm": ["set an alarm", "set my alarm", "I need an alarm", "wake me up"],
    "play_music": ["play some music", "play music", "put on some music", "play a song"],
    "track_package": ["where is my package?", "track my package", "where is my parcel?"],
    "get_news": ["what is the news?", "give me the news", "any news?", "show me the headlines"],
    "get_population": ["how many people live there?", "what is the population?"],
    "web_search": ["search the web", "look something up", "search something for me"],
    "get_stock_price": ["what is the stock price?", "get a stock price"],
}

UNITS = "km miles meters feet inches cm kg pounds grams ounces liters gallons celsius fahrenheit hours minutes seconds days yards mm kelvin tons"
MONEY = "USD EUR GBP JPY CHF CAD AUD SEK NOK INR CNY BRL"
ROOMS = "kitchen bedroom bathroom office hall garage cellar attic lounge garden nursery study"
SMALL_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def arithmetic(lex: Lexicon) -> tuple[str, str]:
    """An arithmetic question: the words of the user, and the expression that a calculator takes."""
    r = lex.rng
    spoken = {"+": ["plus", "+", "and"], "-": ["minus", "-", "less"], "*": ["times", "*", "x", "multiplied by"]}
    spoken["/"] = ["divided by", "/", "over"]

    def operand() -> str:
        roll = r.random()
        if roll < 0.08:
            return str(round(r.uniform(0.1, 99), r.randint(1, 2)))
        return str(r.choice([r.randint(0, 12), r.randint(2, 99), r.randint(2, 999), r.randint(100, 99999)]))

    text = expr = operand()
    for _ in range(1 if r.random() < 0.8 else 2):
        op, right = r.choice("+-**/"), operand()
        word = r.choice(spoken[op][:2] if r.random() < 0.8 else spoken[op])
        tight = word in "+-*/" and r.random() < 0.4
        text += f"{word}{right}" if tight else f" {word} {right}"
        expr += f" {op} {right}"
    if lex.rng.random() < 0.06 and "+" not in text and "/" not in text:
        base, power = r.randint(2, 30), r.randint(2, 9)
        return f"{base} to the power of {power}", f"{base} ** {power}"
    return text, expr


def draw(lex: Lexicon, kind: str, choices: tuple[str, ...]) -> tuple[str, Value]:
    """(text in the request, value in the call) for a kind of a natural tool's parameter."""
    r = lex.rng
    if kind == "arith":
        return arithmetic(lex)
    if kind == "small":
        n = r.randint(2, 10)
        return (SMALL_WORDS[n] if r.random() < 0.4 else str(n)), n
    if kind == "sides":
        n = r.choice([4, 6, 8, 10, 12, 20, 100, r.randint(3, 50)])
        return str(n), n
    pools = {"unit": UNITS, "money": MONEY, "room": ROOMS}
    if kind in pools:
        v: Value = r.choice(pools[kind].split()) if kind == "room" or r.random() > 0.1 else lex.word().lower()
    elif kind == "ticker":
        v = "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=r.randint(2, 5)))
    elif kind == "query":
        v = " ".join(str(lex.value(r.choice(["thing", "topic", "place", "word", "name"]))) for _ in range(r.randint(1, 3)))
    elif kind == "noun":
        v = r.choice([lex.pick("noun"), lex.word().lower()])
    else:
        v = lex.value(kind, choices)
    return (v if isinstance(v, str) else json.dumps(v)), v


def _parse(block: str) -> list[list[str]]:
    return [line.split("|") for line in block.strip().splitlines()]


_KNOWN, _HELD_OUT = _parse(KNOWN), _parse(HELD_OUT)


def known_tool(lex: Lexicon, *, base_names: bool = False) -> Tool:
    """An everyday tool. Training also renames it and its parameters; the evaluation of known tools does not."""
    row = lex.rng.choice(_KNOWN)
    requests = row[4] if lex.evaluation else row[3]
    return _natural(lex, row, requests.split(";"), rename=not (base_names or lex.evaluation))


def held_out_tool(lex: Lexicon) -> Tool:
    """An everyday tool that training never shows."""
    row = lex.rng.choice(_HELD_OUT)
    return _natural(lex, row, row[3].split(";"), rename=False)


def _natural(lex: Lexicon, row: list[str], requests: list[str], rename: bool) -> Tool:
    r = lex.rng
    names = row[0].split(",")
    name = names[0] if not rename or r.random() < 0.5 else r.choice([*names, lex.word().lower()])
    params, renamed, required = [], {}, []
    for spec in filter(None, row[2].split(";")):
        alternatives, kind = spec.split(":")
        optional = kind.endswith("?")
        kind, _, enum = kind.rstrip("?").partition("=")
        options = alternatives.split(",")
        chosen = options[0] if not rename or r.random() < 0.5 else r.choice([*options, lex.word().lower()])
        while chosen in renamed.values():
            chosen = lex.word().lower()
        renamed[options[0]] = chosen
        json_kind = {"small": "int", "sides": "int"}.get(kind, kind)
        params.append((options[0], kind, Parameter(chosen, json_kind, tuple(enum.split(",")) if enum else ())))
        if not optional:
            required.append(chosen)
    desc = row[1] if not rename or r.random() < 0.8 or name not in names else ""
    shown = {p.name: key.replace("_", " ") for key, _, p in params if rename and (p.name != key or r.random() < 0.2)}

    def ask(lx: Lexicon) -> tuple[str, dict[str, Value]]:
        template = lx.rng.choice(requests)
        texts, args = {}, {}
        for key, kind, p in params:
            if "{" + key + "}" in template:
                texts[key], args[p.name] = draw(lx, kind, p.choices)
        if "{count}d" in template:
            texts["count"] = json.dumps(args[params[0][2].name])
        return template.format(**texts), args

    words = frozenset(row[0].replace("_", ",").split(",") + row[1].lower().rstrip(".").split())
    bare = BARE.get(row[0].split(",")[0], [])
    return Tool(name, desc, [p for *_, p in params], required, shown, ask, bare, row[0], words)


def invented_tool(lex: Lexicon, verb: str | None = None, noun: str | None = None) -> Tool:
    """A tool of an unseen name: verb and noun (or an invented word), with 0 to 3 parameters of any kind."""
    r = lex.rng
    verb, noun = verb or lex.pick("verb"), noun or (lex.pick("noun") if r.random() < 0.75 else lex.word().lower())
    name = r.choice([f"{verb}_{noun}"] * 4 + [f"{noun}_{verb}", f"{verb}{noun.capitalize()}", f"{verb}_the_{noun}"])
    opaque = r.random() < 0.12
    if opaque:
        name = r.choice([lex.word().lower(), f"{lex.word().lower()}_{lex.word().lower()}", f"tool_{r.randint(1, 99)}"])
    params: list[Parameter] = []
    for _ in range(r.choices([0, 1, 2, 3], [1, 9, 8, 5])[0]):
        p = lex.parameter()
        if p.name not in [q.name for q in params] and p.name not in (verb, noun):
            params.append(p)
    required = [p.name for p in params if r.random() < 0.85]
    descriptions = [f"{verb.capitalize()} the {noun}.", f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} {noun}s."]
    if params:
        by = params[0].name.replace("_", " ")
        descriptions += [f"{verb.capitalize()} a {noun} by {by}.", f"{verb.capitalize()} the {noun} with the given {by}."]
    desc = "" if r.random() < 0.15 and not opaque else r.choice(descriptions)
    shown = {p.name: f"The {p.name.replace('_', ' ')}" + r.choice(["", ".", f" of the {noun}"]) for p in params if r.random() < 0.25}

    def ask(lx: Lexicon) -> tuple[str, dict[str, Value]]:
        return _explicit_request(lx, verb, noun, params, required)

    return Tool(name, desc, params, required, shown, ask, topic=f"{verb} {noun}", words=frozenset([noun]))


# how people give a value without naming its parameter; with several parameters only the first form is clear
_NATURAL = {"place": ["in {v}", "for {v}", "at {v}"], "name": ["by {v}", "for {v}", "of {v}"], "date": ["on {v}", "for {v}"]}
_NATURAL |= {"time": ["at {v}"], "email": ["to {v}", "for {v}"], "language": ["in {v}"], "topic": ["about {v}", "on {v}"]}
_NATURAL |= {"phrase": ["saying {v}", 'with the text "{v}"', "that says {v}"], "code": ["with code {v}", "{v}", "number {v}"]}


def _explicit_request(
    lex: Lexicon, verb: str, noun: str, params: list[Parameter], required: list[str]
) -> tuple[str, dict[str, Value]]:
    r = lex.rng
    given = [p for p in params if p.name in required or r.random() < 0.4]
    args = {p.name: lex.value(p.kind, p.choices) for p in given}
    head = r.choice([f"{verb} the {noun}", f"{verb} a {noun}", f"{verb} {noun}", f"{verb} my {noun}", f"{verb} this {noun}"])
    said = list(given)
    r.shuffle(said)
    kinds = [p.kind for p in given]
    pieces = []
    for i, p in enumerate(said):
        clear = p.kind in _NATURAL and kinds.count(p.kind) == 1 and not (p.kind == "language" and "place" in kinds)
        if clear and r.random() < 0.35:
            forms = _NATURAL[p.kind]
            pieces.append((r.choice(forms) if len(given) == 1 else forms[0]).format(v=args[p.name]))
        elif len(given) == 1 and p.kind not in ("bool", "phrase") and r.random() < 0.3:
            pieces.append(r.choice(["{v}", "for {v}", "with {v}", "number {v}" if p.type == "integer" else "{v}"]).format(v=_said(lex, args[p.name])))
        else:
            pieces.append(_explicit(lex, p, args[p.name], first=i == 0))
    joiner = r.choice([" ", " and ", ", "])
    text = (head + " " + joiner.join(pieces)).strip()
    if pieces and "=" in pieces[0] or r.random() < 0.04:
        text = f"{head}: {joiner.join(pieces)}" if pieces else head
    return text, {p.name: args[p.name] for p in params if p.name in args}


def _said(lex: Lexicon, value: Value) -> str:
    if isinstance(value, bool):
        return lex.rng.choice([["false", "no", "off"], ["true", "yes", "on"]][value])
    if isinstance(value, str) and lex.rng.random() < 0.1:
        return lex.rng.choice(['"{}"', "'{}'"]).format(value)
    return value if isinstance(value, str) else json.dumps(value)


def _explicit(lex: Lexicon, p: Parameter, value: Value, first: bool) -> str:
    r = lex.rng
    words = p.name.replace("_", " ") if r.random() < 0.7 else p.name
    if p.kind == "bool" and r.random() < 0.4:
        forms = [f"not {words}", f"make it not {words}"], [f"make it {words}", f"{words}"]
        if lex.evaluation:
            forms = [f"it is not {words}"], [f"it should be {words}"]
        return r.choice(forms[bool(value)])
    v = _said(lex, value)
    if lex.evaluation:
        return r.choice([f"with {v} for the {words}", f"whose {words} is {v}", f"the {words} should be {v}", f"taking {v} as the {words}"])
    return r.choice(
        [f"with {words} {v}", f"{words} {v}", f"{words}: {v}", f"{words} = {v}", f"where the {words} is {v}", f"the {words} is {v}"]
        + [f"using {v} as {words}", f"using {v} as the {words}", f"set {words} to {v}", f"with a {words} of {v}", f"with {v} as {words}"]
        + ([f"for {words} {v}", f"for the {words} {v}", f"that has {words} {v}", f"use {v} for {words}"] if first else [f"and {words} {v}"])
    )
