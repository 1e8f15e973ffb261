"""More everyday facts: bodies, simple science, units, places and uses; one entry a fact."""

from typing import Final

from backends.bundled.facts_tables import read_table

ORGANS: Final = read_table(
    """eyes:see; ears:hear; nose:smell; tongue:taste; skin:feel; legs:walk; hands:hold things;
    teeth:chew; lungs:breathe; brain:think; heart:pump blood; stomach:digest food;
    bones:stand up; muscles:move; feet:stand and walk; mouth:eat and speak"""
)
COUNTS: Final = read_table(
    """legs:a spider:eight; legs:an insect:six; legs:a person:two; legs:an octopus:no;
    arms:an octopus:eight; fingers:a hand:five; fingers:a person:ten; toes:a foot:five;
    toes:a person:ten; eyes:a person:two; ears:a person:two; noses:a person:one;
    wheels:a car:four; wheels:a bicycle:two; wheels:a tricycle:three; wings:a bird:two;
    legs:a chair:four; letters:the alphabet:26; players:a football team:eleven;
    strings:a violin:four; strings:a guitar:six; keys:a piano:88; colors:a rainbow:seven;
    planets:the solar system:eight; moons:the Earth:one; continents:the world:seven;
    oceans:the world:five; sides:a cube:six; corners:a cube:eight; cards:a deck:52;
    states:the United States:50; bones:an adult:206"""
)
UNITS: Final = read_table(
    """minutes:an hour:60; seconds:a minute:60; hours:a day:24; days:a week:seven;
    months:a year:twelve; days:a year:365; weeks:a year:52; years:a decade:ten;
    years:a century:100; centimeters:a meter:100; millimeters:a centimeter:ten;
    meters:a kilometer:1000; grams:a kilogram:1000; kilograms:a ton:1000;
    milliliters:a liter:1000; inches:a foot:twelve; feet:a yard:three; cents:a dollar:100;
    eggs:a dozen:twelve; ounces:a pound:16; quarters:a dollar:four; minutes:half an hour:30;
    months:half a year:six"""
)
HOMES: Final = read_table(
    """bees:a hive; birds:a nest; bears:a cave; fish:water; whales:the sea; camels:the desert;
    penguins:cold places; monkeys:the forest; foxes:a den; rabbits:a burrow; spiders:a web;
    horses:a stable; dogs:a kennel; cows:a barn; lions:the savanna; sharks:the sea;
    pigs:a sty; frogs:ponds; ants:an anthill; owls:trees; polar bears:the Arctic;
    kangaroos:Australia"""
)
FOODS: Final = read_table(
    """cows:grass; rabbits:grass and carrots; lions:meat; bees:nectar; pandas:bamboo;
    cats:meat; horses:grass and hay; mice:seeds and grain; owls:mice; frogs:insects;
    sheep:grass; squirrels:nuts; whales:fish and krill; spiders:insects; giraffes:leaves;
    sharks:fish"""
)
GROUPS: Final = read_table(
    """a dog:mammal; a cat:mammal; a whale:mammal; a bat:mammal; a horse:mammal; an eagle:bird;
    a penguin:bird; an owl:bird; a duck:bird; a snake:reptile; a lizard:reptile;
    a turtle:reptile; a crocodile:reptile; a frog:amphibian; a toad:amphibian; a shark:fish;
    a salmon:fish; a bee:insect; an ant:insect; a butterfly:insect; a beetle:insect;
    an apple:fruit; a banana:fruit; a carrot:vegetable; a potato:vegetable; an oak:tree;
    a rose:flower; a tulip:flower; iron:metal; gold:metal; silver:metal; copper:metal;
    oxygen:gas; helium:gas"""
)
USES: Final = read_table(
    """a hammer:drive nails; a saw:cut wood; a knife:cut things; a pen:write;
    a pencil:write and draw; a spoon:eat soup; an umbrella:stay dry in the rain;
    a clock:tell the time; a key:open a lock; a lamp:make light; a broom:sweep the floor;
    a bed:sleep; a stove:cook food; a ruler:measure length;
    a thermometer:measure temperature; a telescope:look at the stars;
    a microscope:see small things; a camera:take pictures; a phone:call people;
    a map:find the way; a boat:travel on water; a ladder:climb up; scissors:cut paper;
    a needle:sew; a bucket:carry water; soap:wash; a towel:get dry; a fridge:keep food cold;
    an oven:bake; a brush:paint; a compass:find north; a bell:make a sound"""
)
JOBS: Final = read_table(
    """a baker:bakes bread; a teacher:teaches children; a doctor:helps ill people;
    a farmer:grows food; a pilot:flies planes; a cook:prepares food;
    a painter:paints pictures; a writer:writes books; a singer:sings songs;
    a fisher:catches fish; a nurse:cares for ill people; a tailor:makes clothes;
    a dentist:looks after teeth; a carpenter:builds with wood;
    a gardener:looks after plants; a miner:digs in the ground; a judge:decides in court;
    a sailor:works on a ship; a firefighter:puts out fires; a librarian:looks after books;
    a mechanic:repairs cars"""
)
SCIENCE: Final = read_table(
    """What is water made of?/Of what is water made?:Water is made of hydrogen and oxygen.;
    At what temperature does water boil?/When does water boil?:Water boils at 100 degrees Celsius.;
    How cold is freezing water?/When does water freeze?:Water freezes at 0 degrees Celsius.;
    What do plants need to grow?/What does a plant need?:Plants need light, water and air.;
    Why is the sky blue?/How come the sky is blue?:Air scatters blue light more than other light.;
    What gas do we breathe?/Which gas do people need?:People need oxygen from the air.;
    What gas do plants take in?/Which gas do plants use?:Plants take in carbon dioxide.;
    How does the Earth move?/What does the Earth go around?:The Earth goes around the sun.;
    What goes around the Earth?/What circles the Earth?:The moon goes around the Earth.;
    Where does the sun rise?/In which direction does the sun rise?:The sun rises in the east.;
    Where does the sun set?/In which direction does the sun set?:The sun sets in the west.;
    What is the largest planet?/Which planet is the biggest?:Jupiter is the largest planet.;
    What is the smallest planet?/Which planet is the smallest?:Mercury is the smallest planet.;
    What planet do we live on?/On which planet do we live?:We live on the Earth.;
    Which planet is called the red planet?/What is the red planet?:Mars is called the red planet.;
    What is the largest ocean?/Which ocean is the biggest?:The Pacific is the largest ocean.;
    What is the largest animal?/Which animal is the biggest?:The blue whale is the largest animal.;
    What is the fastest land animal?/Which animal runs fastest?:The cheetah is the fastest on land.;
    What is the tallest animal?/Which animal is the tallest?:The giraffe is the tallest animal.;
    What is the highest mountain?/Which mountain is highest?:Mount Everest is the highest.;
    What pulls things to the ground?/Why do things fall?:Gravity pulls things to the ground.;
    What makes thunder?/Where does thunder come from?:Lightning makes thunder.;
    What causes day and night?/Why is there night?:The Earth turns, so the sun lights one side.;
    Which senses do people have?/What are the senses?:People see, hear, smell, taste and feel.;
    What is ice?/Of what is ice made?:Ice is frozen water.;
    What is steam?/Of what is steam made?:Steam is water that has become a gas.;
    What color do blue and yellow make?/Mix blue and yellow.:Blue and yellow make green.;
    What color do red and yellow make?/Mix red and yellow.:Red and yellow make orange.;
    What color do red and blue make?/Mix red and blue.:Red and blue make purple.;
    What color do black and white make?/Mix black and white.:Black and white make gray.;
    What color do red and white make?/Mix red and white.:Red and white make pink.;
    What do bees make?/What comes from bees?:Bees make honey.;
    What do cows give us?/What comes from cows?:Cows give us milk.;
    What do hens lay?/What comes from hens?:Hens lay eggs.;
    What do caterpillars become?/What comes from caterpillars?:They become butterflies.;
    What do tadpoles become?/What does a tadpole turn into?:A tadpole becomes a frog.;
    What is wood made from?/Where does wood come from?:Wood comes from trees.;
    What is paper made from?/Where does paper come from?:Paper is made from wood.;
    What is bread made from?/What is in bread?:Bread is made from flour and water.;
    What is cheese made from?/What is in cheese?:Cheese is made from milk.;
    What is glass made from?/What is in glass?:Glass is made from sand.;
    Where does wool come from?/Which animal gives wool?:Wool comes from sheep.;
    What is the hottest season?/Which season is the warmest?:Summer is the warmest season.;
    What is the coldest season?/Which season is the coldest?:Winter is the coldest season."""
)
