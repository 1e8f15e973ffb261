"""The tables behind `facts.py`: plain data, one line of a table a fact."""

from typing import Any, Final


def read_table(text: str) -> list[tuple[str, ...]]:
    """Read `a:b:c; d:e:f` as rows."""
    return [
        tuple(cell.strip() for cell in row.split(":")) for row in text.split(";") if row.strip()
    ]


CAPITALS: Final = read_table(
    """France:Paris:Europe; Germany:Berlin:Europe; Italy:Rome:Europe; Spain:Madrid:Europe;
    Portugal:Lisbon:Europe; Poland:Warsaw:Europe; Greece:Athens:Europe; Norway:Oslo:Europe;
    Sweden:Stockholm:Europe; Denmark:Copenhagen:Europe; Finland:Helsinki:Europe;
    Ireland:Dublin:Europe; Austria:Vienna:Europe; Belgium:Brussels:Europe; Hungary:Budapest:Europe;
    Ukraine:Kyiv:Europe; Iceland:Reykjavik:Europe; Switzerland:Bern:Europe;
    England:London:Europe; the Netherlands:Amsterdam:Europe; Turkey:Ankara:Asia; Japan:Tokyo:Asia;
    China:Beijing:Asia; India:New Delhi:Asia; Thailand:Bangkok:Asia; Vietnam:Hanoi:Asia;
    South Korea:Seoul:Asia; Indonesia:Jakarta:Asia; Iran:Tehran:Asia; Iraq:Baghdad:Asia;
    Pakistan:Islamabad:Asia; Nepal:Kathmandu:Asia; Egypt:Cairo:Africa; Kenya:Nairobi:Africa;
    Nigeria:Abuja:Africa; Ghana:Accra:Africa; Ethiopia:Addis Ababa:Africa; Morocco:Rabat:Africa;
    Canada:Ottawa:North America; Mexico:Mexico City:North America; Cuba:Havana:North America;
    the United States:Washington, D.C.:North America; Brazil:Brasilia:South America;
    Argentina:Buenos Aires:South America; Peru:Lima:South America; Chile:Santiago:South America;
    Colombia:Bogota:South America; Australia:Canberra:Oceania; New Zealand:Wellington:Oceania"""
)
COLOURS: Final = read_table(
    """the sky:blue; grass:green; snow:white; coal:black; a banana:yellow; a carrot:orange;
    blood:red; a lemon:yellow; milk:white; the sea:blue; a strawberry:red; a tomato:red;
    an orange:orange; a leaf:green; chocolate:brown; the night:black; a cloud:white; a frog:green;
    a cherry:red; a plum:purple; an elephant:gray; a polar bear:white; the sun:yellow; wood:brown;
    a flamingo:pink; a pea:green; a violet:purple; a crow:black; salt:white; a fire engine:red"""
)
SHAPES: Final = read_table(
    """a triangle:three; a square:four; a rectangle:four; a pentagon:five; a hexagon:six;
    an octagon:eight; a heptagon:seven; a decagon:ten"""
)
ANIMALS: Final = read_table(
    """dog:woof:puppy:four; cat:meow:kitten:four; cow:moo:calf:four; sheep:baa:lamb:four;
    pig:oink:piglet:four; horse:neigh:foal:four; duck:quack:duckling:two; goat:meh:kid:four;
    lion:roar:cub:four; wolf:howl:pup:four; bear:growl:cub:four; frog:croak:tadpole:four;
    hen:cluck:chick:two; owl:hoot:owlet:two; goose:honk:gosling:two; mouse:squeak:pup:four;
    elephant:trumpet:calf:four; tiger:roar:cub:four; donkey:hee-haw:foal:four; fox:yip:cub:four"""
)
WEEKDAYS: Final = (
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
)
MONTHS: Final = read_table(
    """January:31; February:28; March:31; April:30; May:31; June:30; July:31; August:31;
    September:30; October:31; November:30; December:31"""
)
PLANETS: Final = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
NAMES: Final = (
    "Anna Ben Carla David Emma Felix Grace Henry Isla Jack Kate Leo Maya Noah Olivia Peter Rosa "
    "Sam Tina Victor Wendy Zoe Amir Bella Diego Elena Hugo Ines Jonas Kira Liam Mona Omar Priya "
    "Ravi Sofia Tom Uma Max Lily Lucy George Alice Oscar Ruby Ella Finn Nina Paul Sara"
).split()
OPPOSITES: Final = read_table(
    """hot:cold; big:small; up:down; left:right; day:night; happy:sad; fast:slow; old:young;
    open:closed; bright:dark; high:low; hard:soft; wet:dry; full:empty; rich:poor; strong:weak;
    early:late; good:bad; clean:dirty; loud:quiet; near:far; long:short; wide:narrow; thick:thin;
    heavy:light; first:last; inside:outside; true:false; start:end; win:lose; buy:sell;
    push:pull; love:hate; always:never; front:back; easy:difficult; cheap:expensive; sweet:sour"""
)
PLURALS: Final = read_table(
    """mouse:mice; child:children; foot:feet; tooth:teeth; man:men; woman:women; goose:geese;
    sheep:sheep; fish:fish; leaf:leaves; wolf:wolves; knife:knives; box:boxes; city:cities;
    baby:babies; dog:dogs; house:houses; apple:apples; bus:buses; person:people; tomato:tomatoes;
    book:books; cat:cats; tree:trees; berry:berries; life:lives; ox:oxen; church:churches"""
)
KINDS: Final = [
    (row[0], row[1].split())
    for row in read_table(
        """fruits:apples bananas oranges pears grapes cherries plums; colors:red blue green yellow
        purple white black; animals:dogs cats horses cows lions rabbits bears; vegetables:carrots
        potatoes onions peas beans tomatoes cabbages; countries:France Japan Brazil Egypt Canada
        India Italy; planets:Mars Venus Jupiter Saturn Earth Mercury Neptune; birds:owls ducks
        crows eagles robins swans gulls; drinks:water
        milk tea coffee juice cocoa lemonade; trees:oaks pines birches maples willows elms beeches;
        tools:hammers saws drills axes pliers rakes shovels"""
    )
]
DEFINITIONS: Final = read_table(
    """a dog:A dog is an animal with four legs. Many people keep dogs as pets;
    a cat:A cat is a small animal with soft fur. Many people keep cats as pets;
    the sun:The sun is a star. It gives light and warmth to the Earth;
    the moon:The moon is a ball of rock that goes around the Earth. We see it at night;
    the Earth:The Earth is the planet on which we live. It goes around the sun;
    water:Water is a clear liquid. People, animals and plants need it to live;
    rain:Rain is water that falls in drops from the clouds;
    snow:Snow is frozen water that falls from the clouds in white flakes;
    ice:Ice is frozen water. It is hard and cold;
    wind:Wind is air that moves;
    a cloud:A cloud is made of very small drops of water in the sky;
    a tree:A tree is a tall plant with a trunk, branches and leaves;
    a flower:A flower is the part of a plant that makes seeds. Many flowers are bright;
    a book:A book is made of pages with words or pictures that people read;
    a computer:A computer is a machine that works with numbers and words very fast;
    a robot:A robot is a machine that can do work by itself;
    a car:A car is a machine with four wheels that carries people on roads;
    a bicycle:A bicycle has two wheels. You ride it by pushing the pedals;
    a house:A house is a building in which people live;
    a school:A school is a place where children learn;
    a doctor:A doctor helps people who are ill;
    a teacher:A teacher helps people to learn;
    a farmer:A farmer grows plants and keeps animals for food;
    bread:Bread is a food made from flour and water and baked in an oven;
    milk:Milk is a white drink that comes from cows and other animals;
    honey:Honey is a sweet food made by bees;
    a bee:A bee is a small insect that makes honey;
    a bird:A bird is an animal with feathers and wings. Most birds can fly;
    a fish:A fish is an animal that lives in water and swims;
    a whale:A whale is a very large animal that lives in the sea and breathes air;
    an elephant:An elephant is a very large gray animal with a long trunk;
    a lion:A lion is a big wild cat that lives in Africa;
    a river:A river is water that flows through the land to the sea;
    the sea:The sea is the salt water that covers most of the Earth;
    a mountain:A mountain is very high land;
    a desert:A desert is a dry place with little rain;
    a forest:A forest is a large place with many trees;
    an island:An island is land with water all around it;
    fire:Fire is hot and bright. It burns wood and other things;
    gold:Gold is a yellow metal that is worth much money;
    music:Music is made of sounds that people like to hear;
    winter:Winter is the coldest season of the year;
    summer:Summer is the warmest season of the year;
    spring:Spring is the season after winter, when plants begin to grow;
    autumn:Autumn is the season after summer, when leaves fall from the trees;
    the heart:The heart moves the blood through the body;
    the water cycle:Water rises from the sea into the air, makes clouds, and falls as rain;
    a language model:A language model is a program that writes text one small piece at a time;
    Headgate:Headgate is a gateway that sends each request to a model that can answer it;
    a token:A token is a small piece of text, such as a word or a part of a word"""
)
DEFINITIONS[:] = [(thing, meaning + ".") for thing, meaning in DEFINITIONS]
WHO: Final = "I am a small demo model that ships with Headgate."
IDENTITY_LEADS: Final = ("", "Hello! ", "Please tell me: ", "I wonder: ", "Just one question. ")
IDENTITY: Final = [
    (
        "Who are you really?|What exactly are you?|What kind of model are you?|What are you called?"
        "|Who is this?|What is this?|Who is answering me?|Who writes these answers?"
        "|What is your model name?|How big are you?|Are you a large language model?"
        "|Are you a chatbot?|Are you a program?|What sort of program are you?|What do you run on?"
        "|Where do you come from?|Who built you?|Who trained you?|Which company made you?"
        "|Are you ChatGPT?|Are you GPT-4?|Are you Claude?|Are you Llama?|Do you have a name?"
        "|Can you introduce yourself?|Say something about yourself.|Describe yourself."
        "|What should I know about you?|Which demo model is this?|What are you made of?"
        "|Explain what you are.|In a few words, what are you?|You are what, exactly?",
        WHO,
    ),
    (
        "Are you human?|Are you a human being?|Am I talking to a human?|Am I talking to a person?"
        "|Is this a real person?|Are you alive?|Are you a man or a woman?|Do you have a body?"
        "|Is a human writing this?|Are you real?|Do you have feelings?|Are you a living thing?"
        "|Can I meet you?|How old are you?|Where do you live?|Do you sleep?|Do you eat?",
        "No person is here. I am a small demo model that ships with Headgate.",
    ),
    (
        "Are you a bot?|Are you a robot?|Am I talking to a bot?|Am I talking to a machine?"
        "|Are you a computer?|Are you artificial?|Is this a machine?|Is this an AI?"
        "|Are you a small model?|Are you a demo?|Do you belong to Headgate?"
        "|Do you come with Headgate?|Are you part of Headgate?",
        "Yes, I am a small demo model that ships with Headgate.",
    ),
    (
        "Are you smart?|Do you know everything?|Can I trust you?|Are you always right?"
        "|Do you make mistakes?|Are your answers true?|How good are you?",
        "I am a small demo model and often wrong. Please check what I say.",
    ),
]
"""Questions about the model itself, each with its answer; asked with every lead."""
HELP: Final = "I can answer simple questions, do small sums, sort words and tell short stories."
SMALL_TALK: Final = [
    (
        "Who are you?|What are you?|Tell me about yourself.|What is your name?|who are you|"
        "What should I call you?|Introduce yourself.|Are you a model?|Are you an AI?|"
        "Which model are you?|What model is this?|Who made you?|Hello, who are you?|"
        "Hi! Who are you?|Are you a person?|Can you tell me who you are?|Hi, what are you?",
        WHO,
    ),
    (
        "What can you do?|How can you help me?|What are you good at?|Help|help|Can you help me?|"
        "What do you know?|I need help.|What can I ask you?|How do you work?",
        HELP,
    ),
    (
        "Hello|Hi|Hey|Hello!|Hi!|Hi there|Hello there!|Good morning|Good morning!|Good evening|"
        "Good afternoon|hello|hi|hey|Hey there|Greetings|Howdy|Hello there|Hi there!|Hey!|Yo",
        "Hello! How can I help you?",
    ),
    (
        "How are you?|How are you doing?|How are you today?|How is it going?|how are you|"
        "Are you well?|How do you feel?|Hello, how are you?|Hi, how are you?|How do you do?",
        "I am well, thank you. How can I help you?",
    ),
    (
        "Thank you|Thanks|Thank you!|Thanks!|thanks|Thank you very much.|"
        "Thanks a lot!|Great, thanks|"
        "Thank you for your help.|That was helpful.",
        "You are welcome!",
    ),
    (
        "Bye|Goodbye|Goodbye!|See you later|bye|Good night|Bye!|See you|See you tomorrow|Farewell",
        "Goodbye! Have a nice day.",
    ),
    (
        "How many days are in a week?|How many days does a week have?|Count the days in a week.",
        "A week has seven days.",
    ),
    (
        "How many months are in a year?|How many months does a year have?",
        "A year has twelve months.",
    ),
    (
        "How many hours are in a day?|How many hours does a day have?",
        "A day has 24 hours.",
    ),
    (
        "Name the seasons.|What are the four seasons?|List the seasons of the year.",
        "The four seasons are spring, summer, autumn and winter.",
    ),
    (
        "Name the days of the week.|List the days of the week.|What are the days of the week?",
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",
    ),
    (
        "Count to ten.|Count from 1 to 10.|Can you count to ten?|Please count to 10.",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    ),
    (
        "Say the alphabet.|What is the alphabet?|Recite the alphabet.",
        "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    ),
    (
        "Tell me a joke.|Do you know a joke?|Make me laugh.|Say something funny.|Tell a joke",
        "Why did the book go to the doctor? It had hurt its spine.",
    ),
    (
        "What is the weather today?|Will it rain tomorrow?|What time is it?|What day is it today?|"
        "Who won the game last night?|What is in the news?",
        "I cannot know that. I only know what I learned in training.",
    ),
]
STORY_PARTS: Final[dict[str, Any]] = {
    "words": [
        (
            "place",
            "a small house|a green forest|an old castle|a quiet village|a little town".split("|"),
        ),
        ("thing", "red ball|golden key|little boat|big book|blue hat|shiny stone".split("|")),
        ("where", "by the river|under a tree|in the garden|behind a wall|on a hill".split("|")),
        ("mood", "happy|proud|glad|full of joy".split("|")),
    ],
    "sentences": [
        (
            "begin",
            [
                "Once upon a time there was a little {hero} named {name} who lived in {place}.",
                "There was once a {hero} called {name}. {name} lived in {place}.",
                "{name} was a young {hero} who lived in {place}.",
            ],
        ),
        (
            "find",
            [
                "One day {name} found a {thing} {where}.",
                "One morning {name} went for a walk and saw a {thing} {where}.",
                "One sunny day {name} lost a {thing} {where}.",
            ],
        ),
        (
            "meet",
            [
                'Then {friend} came by and asked, "Can we play with it together?"',
                '"What is that?" asked {friend}, a good friend of {name}.',
                "{name} ran home to tell {friend} about it.",
            ],
        ),
        (
            "do",
            [
                "They played until the sun went down.",
                "They looked at it for a long time and laughed.",
                "The two friends helped each other and did not give up.",
            ],
        ),
        (
            "end",
            [
                "In the end they were both {mood}, and they stayed friends for ever.",
                "That night {name} went to sleep and was {mood}.",
                "And from that day on {name} was always {mood}.",
            ],
        ),
    ],
}
