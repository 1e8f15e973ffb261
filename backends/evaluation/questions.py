"""Hand-written questions: about Headgate, greetings, open ones, and who the model is."""

from collections.abc import Iterator
from typing import Final

from backends.evaluation.items import Item, Match

DOCS: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        "budgets",
        ("headgate budgets set",),
        (
            "My team may spend 5 dollars a day. Which command limits it?",
            "By which command do I give a team a spending limit?",
        ),
    ),
    (
        "budget_scope",
        ("team:search", "--scope"),
        ("How do I say which team a budget is for?", "Which option names the team of a budget?"),
    ),
    (
        "soft_budget",
        ("--soft",),
        ("Which flag makes a budget only warn and never refuse?",),
    ),
    (
        "keys",
        ("headgate keys create",),
        (
            "A new team needs an API key. What do I type?",
            "By which command do I get a key for my team?",
        ),
    ),
    (
        "revoke",
        ("headgate keys revoke", "keys revoke"),
        ("A key has leaked. Which command takes it back?",),
    ),
    (
        "serve",
        ("headgate serve",),
        ("Which command brings the whole gateway up?", "What do I type to run Headgate?"),
    ),
    (
        "costs",
        ("headgate report costs",),
        (
            "I would like to see what each team has spent. Which command shows it?",
            "Which command prints a cost report?",
        ),
    ),
    (
        "group_by",
        ("--group-by",),
        ("Which option sorts a cost report into teams and models?",),
    ),
    (
        "explain",
        ("headgate explain",),
        (
            "Why did my request go to that model? Which command tells me?",
            "How can I see the decision of one request again, by its id?",
        ),
    ),
    (
        "status",
        ("headgate status",),
        ("Which command shows health, load and spend on one screen?",),
    ),
    (
        "doctor",
        ("headgate doctor",),
        ("Which command finds out what is wrong with this machine?",),
    ),
    (
        "policy_check",
        ("headgate policy check",),
        ("I changed a policy file. Which command tells me if it is valid?",),
    ),
    (
        "policy_explain",
        ("headgate policy explain", "/route/explain"),
        ("How do I try a policy on one prompt without running a model?",),
    ),
    (
        "policy_rules",
        ("[[rules]]",),
        ("How does a rule begin in a policy file?", "Which table holds one rule of a policy?"),
    ),
    (
        "policy_default",
        ("[default]", "default"),
        ("Which part must every policy have besides its rules?",),
    ),
    (
        "fallbacks",
        ("fallbacks",),
        ("Which key lists the models to try when the first one is down?",),
    ),
    (
        "policy_folder",
        ("policies",),
        ("In which folder does Headgate look for my policy files?",),
    ),
    (
        "cache_off",
        ("x-headgate-cache",),
        (
            "Which header keeps a request away from the cache?",
            "How do I ask for a fresh answer that is not out of the cache?",
        ),
    ),
    (
        "cache_refresh",
        ("refresh",),
        ("Which value of the cache header writes an answer but reads none?",),
    ),
    (
        "semantic",
        ("semantic",),
        ("What does the cache header say when a question was asked before in other words?",),
    ),
    (
        "exact",
        ("exact",),
        ("What does the cache header say when the very same question was asked before?",),
    ),
    (
        "cost_header",
        ("x-headgate-cost-usd",),
        (
            "In which response header do I find the price of an answer?",
            "Which header tells me what my request has cost?",
        ),
    ),
    (
        "saved_header",
        ("x-headgate-saved-usd",),
        ("Which header says how much money a cache hit saved?",),
    ),
    (
        "backend_header",
        ("x-headgate-backend",),
        ("Which header names the backend that answered?",),
    ),
    (
        "difficulty_header",
        ("x-headgate-difficulty",),
        ("Where do I read how hard Headgate found my question?",),
    ),
    (
        "task_header",
        ("x-headgate-task",),
        ("Which header shows the task that the classifier found?",),
    ),
    (
        "request_id",
        ("x-headgate-request-id", "x-request-id"),
        ("Which header carries the id of my request?",),
    ),
    (
        "max_cost",
        ("x-headgate-max-cost-usd",),
        ("Which request header caps what one request may cost?",),
    ),
    (
        "deadline",
        ("x-headgate-deadline-ms",),
        ("How do I give a single request a deadline?",),
    ),
    (
        "tags",
        ("x-headgate-tags",),
        ("Which header puts tags on a request for the reports?",),
    ),
    (
        "auto",
        ("auto",),
        ("Which model name lets the policy choose?", "What do I send as model to be routed?"),
    ),
    (
        "config_file",
        ("headgate.toml",),
        ("In what file do I configure Headgate?", "Which file lists my backends?"),
    ),
    (
        "backends_table",
        ("[[backends]]",),
        ("How is a backend entered in the configuration?",),
    ),
    (
        "openai_kind",
        ("openai",),
        ("Which kind do I give a backend that is some other OpenAI-compatible server?",),
    ),
    (
        "redis",
        ("redis",),
        ("Where do the caches keep their answers?",),
    ),
    (
        "port",
        ("8080",),
        ("On which port does Headgate listen when I change nothing?",),
    ),
    (
        "metrics",
        ("/metrics",),
        ("From which path does Prometheus read?",),
    ),
    (
        "health",
        ("/health",),
        ("Which path tells a load balancer that Headgate is alive?",),
    ),
    (
        "feedback",
        ("/feedback",),
        ("To which path do I send a thumbs down about an answer?",),
    ),
    (
        "quantize",
        ("headgate quantize", "quantize"),
        ("Which command makes a smaller copy of a model?",),
    ),
    (
        "eval",
        ("headgate models eval", "models eval"),
        ("Which command measures how good a model is?",),
    ),
    (
        "chat",
        ("headgate chat",),
        ("How can I talk to a model in the terminal?",),
    ),
    (
        "budget_spent",
        ("429", "insufficient_quota"),
        ("Which error does a caller get once the budget is used up?",),
    ),
    (
        "what",
        ("gateway",),
        ("In one sentence, what is Headgate good for?", "What kind of program is Headgate?"),
    ),
)
"""(topic, any of these words make it right, wordings)."""

GREETINGS: Final = (
    "Hello, nice to meet you here!",
    "Good morning to you, little model!",
    "Hi, is anybody at home?",
    "Hey, good to see you again today.",
    "Good evening, I hope you are well.",
    "Hello, hello! Can you hear me?",
    "Hi, it is me again.",
    "A very good day to you!",
    "Hey, how has your morning been?",
    "Hi! How are things with you this evening?",
    "Thanks, you have been a great help to me.",
    "That is all for now, thank you and bye.",
    "I have to go now. See you on Monday!",
    "Sleep well, little helper.",
    "Many thanks for all of your answers.",
    "Hello, I am new here.",
)
IDENTITY: Final = (
    "So what am I talking to here?",
    "Are you a big model or a small one?",
    "Do I speak with a human or with a machine?",
    "Please say in one sentence what you are.",
    "What sort of thing are you, if I may ask?",
    "Which program ships you?",
    "Is there a person behind these answers?",
    "Tell me honestly: what are you?",
)
OPEN: Final = (
    ("Tell me a story about a snail that wanted to fly.", "snail"),
    ("Write three sentences about a ship in a storm.", "ship storm waves"),
    ("Please tell me something about the sea at night.", "sea moon stars waves"),
    ("Write a short story about two friends and a lost key.", "key"),
    ("What could a child do on a rainy afternoon?", "play read draw paint bake book games game"),
    ("Describe a quiet morning in a village.", "morning village"),
    ("Tell me a tale of an old clock.", "clock"),
    ("Why do people like to sing together?", "sing song songs singing"),
    ("Write a few lines about the first snow of the year.", "snow snowflakes"),
    ("What would a cat say if it could speak?", "cat milk mouse fish"),
    ("Tell me about a day in the life of a baker.", "baker bread"),
    ("How does one become a good friend?", "friend friends kind listen help"),
    ("Write a small story in which a dragon is afraid of the dark.", "dragon"),
    ("What is nice about autumn?", "autumn leaves colours colors harvest"),
    (
        "Sum this up in one sentence: The train was late because of the snow. Many people "
        "waited in the cold hall. At last it came, and all were glad.",
        "train people snow",
    ),
    (
        "Sum this up in one sentence: Bees fly from flower to flower and gather a sweet juice. "
        "In the hive they make honey of it, which feeds them in winter.",
        "bees honey",
    ),
    (
        "Say it shorter: The old man went to the market every morning to buy bread, and every "
        "morning the baker gave him a bun for his grandson.",
        "man market bread",
    ),
    (
        "Give this a title: A girl found a bottle on the beach. In it was a map of an island.",
        "bottle map island beach treasure",
    ),
)
"""Open tasks, each with words of which an answer must say one, so that it is about them."""
WHO: Final = ("model", "program", "bot", "machine", "headgate")


def docs_items() -> Iterator[Item]:
    """Questions about Headgate, answered by the words that must be in it."""
    for topic, answers, wordings in DOCS:
        for number, prompt in enumerate(wordings, 1):
            yield Item(
                id=f"{topic}-{number}",
                prompt=prompt,
                answers=answers,
                match="mentions",
                part="docs",
                task=topic,
            )


def chat_items() -> Iterator[Item]:
    """Greetings, open tasks, and questions about the model itself."""
    for number, prompt in enumerate(GREETINGS, 1):
        yield _chat_item("greetings", number, prompt, "fluent")
    for number, prompt in enumerate(IDENTITY, 1):
        yield _chat_item("identity", number, prompt, "mentions", WHO)
    for number, (prompt, words) in enumerate(OPEN, 1):
        yield _chat_item("open", number, prompt, "fluent", tuple(words.split()), max_tokens=200)


def _chat_item(
    part: str,
    number: int,
    prompt: str,
    match: Match,
    answers: tuple[str, ...] = (),
    max_tokens: int = 96,
) -> Item:
    return Item(
        id=f"{part}-{number}",
        prompt=prompt,
        answers=answers,
        match=match,
        part=part,
        task=part,
        max_tokens=max_tokens,
    )
