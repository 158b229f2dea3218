"""Fact tables: what the model can know, and the training phrasings that ask for it."""

CAPITALS = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"), ("England", "London"),
    ("Portugal", "Lisbon"), ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Greece", "Athens"), ("Norway", "Oslo"),
    ("Sweden", "Stockholm"), ("Finland", "Helsinki"), ("Denmark", "Copenhagen"), ("Ireland", "Dublin"),
    ("Hungary", "Budapest"), ("Russia", "Moscow"), ("Japan", "Tokyo"), ("China", "Beijing"), ("Egypt", "Cairo"),
    ("Canada", "Ottawa"), ("Cuba", "Havana"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Turkey", "Ankara"),
)  # fmt: skip
SOUNDS = (
    ("cow", "moo"), ("dog", "woof"), ("cat", "meow"), ("sheep", "baa"), ("pig", "oink"), ("duck", "quack"),
    ("horse", "neigh"), ("lion", "roar"), ("bee", "buzz"), ("frog", "croak"), ("owl", "hoot"), ("snake", "hiss"),
    ("mouse", "squeak"), ("wolf", "howl"), ("rooster", "cock-a-doodle-doo"), ("crow", "caw"),
)  # fmt: skip
LEGS = (
    ("cow", "four"), ("dog", "four"), ("cat", "four"), ("sheep", "four"), ("horse", "four"), ("lion", "four"),
    ("wolf", "four"), ("fox", "four"), ("bear", "four"), ("mouse", "four"), ("frog", "four"), ("goat", "four"),
    ("duck", "two"), ("hen", "two"), ("owl", "two"), ("crow", "two"), ("bird", "two"), ("goose", "two"),
    ("bee", "six"), ("ant", "six"), ("fly", "six"), ("beetle", "six"), ("spider", "eight"), ("snake", "no"),
    ("fish", "no"), ("worm", "no"),
)  # fmt: skip
YOUNG = (
    ("cow", "calf"), ("dog", "puppy"), ("cat", "kitten"), ("sheep", "lamb"), ("pig", "piglet"), ("duck", "duckling"),
    ("horse", "foal"), ("lion", "cub"), ("hen", "chick"), ("goat", "kid"), ("frog", "tadpole"), ("goose", "gosling"),
    ("deer", "fawn"), ("swan", "cygnet"),
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("old", "young"), ("day", "night"), ("up", "down"),
    ("good", "bad"), ("rich", "poor"), ("black", "white"), ("open", "closed"), ("full", "empty"), ("wet", "dry"),
    ("long", "short"), ("hard", "soft"), ("light", "dark"), ("happy", "sad"), ("high", "low"), ("left", "right"),
    ("early", "late"), ("loud", "quiet"), ("strong", "weak"), ("sweet", "sour"), ("thick", "thin"), ("true", "false"),
    ("wide", "narrow"), ("near", "far"), ("clean", "dirty"), ("love", "hate"), ("win", "lose"), ("first", "last"),
)  # fmt: skip
PLURALS = (
    ("dog", "dogs"), ("cat", "cats"), ("house", "houses"), ("tree", "trees"), ("book", "books"), ("king", "kings"),
    ("bird", "birds"), ("apple", "apples"), ("girl", "girls"), ("boy", "boys"), ("box", "boxes"), ("fox", "foxes"),
    ("church", "churches"), ("dish", "dishes"), ("glass", "glasses"), ("city", "cities"), ("baby", "babies"),
    ("lady", "ladies"), ("story", "stories"), ("mouse", "mice"), ("goose", "geese"), ("foot", "feet"),
    ("tooth", "teeth"), ("man", "men"), ("woman", "women"), ("child", "children"), ("ox", "oxen"),
    ("sheep", "sheep"), ("wolf", "wolves"), ("leaf", "leaves"), ("knife", "knives"), ("wife", "wives"),
    ("star", "stars"), ("table", "tables"),
)  # fmt: skip
COLOURS = (
    ("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("coal", "black"), ("blood", "red"),
    ("a lemon", "yellow"), ("a banana", "yellow"), ("milk", "white"), ("the sun", "yellow"), ("a leaf", "green"),
    ("a crow", "black"), ("a tomato", "red"), ("a frog", "green"), ("a carrot", "orange"), ("chocolate", "brown"),
    ("an elephant", "grey"), ("the sea", "blue"), ("a strawberry", "red"), ("a swan", "white"), ("the night", "black"),
    ("a pumpkin", "orange"), ("a flamingo", "pink"), ("gold", "yellow"), ("salt", "white"),
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
SEASONS = ("Spring", "Summer", "Autumn", "Winter")
SEASON_SIGNS = (
    ("it snows", "winter"), ("the leaves fall", "autumn"), ("the flowers begin to grow", "spring"),
    ("it is very hot", "summer"), ("it is very cold", "winter"), ("the birds build their nests", "spring"),
    ("the children swim in the lake", "summer"), ("the apples are picked", "autumn"),
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
SIDES = (("triangle", "three"), ("square", "four"), ("rectangle", "four"), ("pentagon", "five"), ("hexagon", "six"),
         ("octagon", "eight"))  # fmt: skip
HOMES = (
    ("bird", "a nest"), ("bee", "a hive"), ("fish", "the water"), ("fox", "a den"), ("horse", "a stable"),
    ("king", "a castle"), ("spider", "a web"), ("dog", "a kennel"), ("pig", "a sty"), ("lion", "the savanna"),
    ("monkey", "the jungle"), ("camel", "the desert"),
)  # fmt: skip
KINDS = (
    ("apple", "fruit"), ("banana", "fruit"), ("pear", "fruit"), ("carrot", "vegetable"), ("cabbage", "vegetable"),
    ("rose", "flower"), ("tulip", "flower"), ("oak", "tree"), ("hammer", "tool"), ("saw", "tool"), ("crow", "bird"),
    ("owl", "bird"), ("ant", "insect"), ("bee", "insect"), ("trout", "fish"), ("violin", "musical instrument"),
)  # fmt: skip

PHRASINGS = {
    "capital": (
        "What is the capital of {k}?", "What's the capital of {k}?", "Name the capital of {k}.", "Capital of {k}?",
        "What is {k}'s capital?", "Tell me the capital of {k}.", "Which city is {k}'s capital?",
        "What is the capital city of {k}?", "What is the name of {k}'s capital city?", "Say the capital of {k}.",
        "I need the capital of {k}.", "Give me the capital of {k}.", "What city is the capital in {k}?",
        "Do you know {k}'s capital city?", "{k} has which capital?", "The capital of {k} is what?",
        "From which capital is {k} governed?", "What do we call the capital of {k}?", "{k}: which capital?",
    ),
    "country": (
        "{k} is the capital of which country?", "Which country has the capital {k}?", "In which country is {k}?",
        "Where is {k}?", "Of what country is {k} the capital?", "What country is {k} in?", "Where does {k} lie?",
    ),
    "sound": (
        "What does {ak} say?", "What sound does {ak} make?", "How does {ak} sound?", "What noise does {ak} make?",
        "What is the sound of {ak}?", "Which sound do you hear from {ak}?", "The {k} says what?",
        "Make the sound of {ak}.", "Say something like {ak}.", "Tell me the sound {ak} makes.",
        "Which noise comes from {ak}?", "What do you hear when {ak} speaks?", "Imitate {ak}.", "Sound of {ak}?",
        "If I meet {ak}, what will it say?", "Give me the noise of {ak}.",
    ),
    "legs": (
        "How many legs does {ak} have?", "How many legs has {ak}?", "What number of legs does {ak} have?",
        "Tell me how many legs {ak} has.", "Count the legs of {ak}.", "The {k} has how many legs?", "Legs of {ak}?",
        "How many legs are there on {ak}?", "Do you know how many legs {ak} has?", "How many legs can {ak} have?",
        "I see {ak}. How many legs are there?", "Give me the number of legs of {ak}.", "{ak} has how many legs?",
        "With how many legs is {ak} born?", "How many legs do I see on {ak}?",
    ),
    "young": (
        "What is a young {k} called?", "What is a baby {k} called?", "What do you call a young {k}?",
        "What do you call a baby {k}?", "Name the young of {ak}.", "What is the name for a young {k}?",
        "How is a baby {k} called?", "What is the young of {ak} called?", "Tell me the word for a baby {k}.",
        "Which word means a young {k}?", "What is the child of {ak}?", "Give me the name of a baby {k}.",
        "The baby of {ak} is called what?", "When {ak} is very young, what is it called?", "Word for a young {k}?",
    ),
    "opposite": (
        "What is the opposite of {k}?", "What's the opposite of {k}?", "Opposite of {k}?", "Name the opposite of {k}.",
        "Tell me the opposite of {k}.", "Which word is the opposite of {k}?", "Give the opposite of {k}.",
        "What is the opposite of the word {k}?", "{k} is the opposite of what?", "Say the opposite of {k}.",
        "What word means the opposite of {k}?", "I need the opposite of {k}.", "The opposite of {k} is what?",
        "If something is not {k}, what is it? Say the opposite.", "Which word is opposite to {k}?", "Not {k} but what?",
        "Do you know a word that is opposite to {k}?", "Find the opposite: {k}", "Opposite word for {k}, please.",
    ),
    "plural": (
        "What is the plural of {k}?", "What's the plural of {k}?", "Plural of {k}?", "Give the plural of {k}.",
        "Tell me the plural of {k}.", "What is the plural form of {k}?", "Form the plural of {k}.",
        "One {k}, two what?", "How do you say more than one {k}?", "Write the plural of {k}.", "One {k}, many what?",
        "What is the plural of the word {k}?", "I need the plural of {k}.", "Say {k} in the plural.",
        "The plural of {k} is what?", "If there are many, what do we say for {k}?", "Find the plural: {k}",
        "Put {k} into the plural.", "Which word is the plural of {k}?",
    ),
    "colour": (
        "What colour is {k}?", "What is the colour of {k}?", "Which colour is {k}?", "What color is {k}?",
        "Tell me the colour of {k}.", "Which colour has {k}?", "Name the colour of {k}.", "Colour of {k}?",
        "What is the color of {k}?", "What colour does {k} have?", "I paint {k}. Which colour do I need?",
        "Of which colour is {k}?", "Do you know the colour of {k}?", "{k} has what colour?",
        "Say the colour of {k}.", "In what colour should I draw {k}?",
    ),
    "after": (
        "What comes after {k}?", "What follows {k}?", "What is next after {k}?", "Say what comes after {k}.",
        "Name what follows {k}.", "After {k} comes what?", "{k} is followed by what?", "What is after {k}?",
    ),
    "before": (
        "What comes before {k}?", "What is before {k}?", "Say what comes before {k}.", "Before {k} comes what?",
        "What was before {k}?", "Name what comes before {k}.", "{k} comes after what?",
    ),
    "day after": (
        "Which day comes after {k}?", "What day follows {k}?", "What is the day after {k}?",
        "Today is {k}. What day is tomorrow?", "Name the next day after {k}.", "Which day is next after {k}?",
        "If it is {k} today, which day is it tomorrow?", "The day after {k} is what?",
    ),
    "day before": (
        "Which day comes before {k}?", "What day is before {k}?", "What is the day before {k}?",
        "Today is {k}. What day was yesterday?", "Name the day before {k}.", "The day before {k} is what?",
        "If it is {k} today, which day was it yesterday?",
    ),
    "month after": (
        "Which month comes after {k}?", "What month follows {k}?", "What is the month after {k}?",
        "Name the next month after {k}.", "Which month is next after {k}?", "The month after {k} is what?",
        "It is {k}. Which month is the next one?",
    ),
    "month before": (
        "Which month comes before {k}?", "What month is before {k}?", "What is the month before {k}?",
        "Name the month before {k}.", "The month before {k} is what?", "It is {k}. Which month was the last one?",
    ),
    "season after": (
        "Which season comes after {k}?", "What season follows {k}?", "What is the season after {k}?",
        "Name the next season after {k}.", "The season after {k} is what?",
    ),
    "season": (
        "In which season do we say: {k}?", "When do we see this: {k}?", "Which season is it when {k}?",
        "What season is it when {k}?", "Name the season when {k}.", "If {k}, which season is it?",
        "Tell me the season in which {k}.", "{k}. What time of the year is it?",
    ),
    "number name": (
        "How do you write the number {k} in words?", "Write {k} as a word.", "Write {k} in words.",
        "Spell the number {k}.", "What is {k} in words?", "Write the number {k} as a word.",
        "How is {k} written in letters?", "Name the number {k}.", "What is the word for {k}?",
        "Write {k} with letters.", "Turn {k} into a word.", "The number {k} as a word?", "How do we say {k}?",
        "Which word stands for {k}?",
    ),
    "number digits": (
        "Write {k} as a number.", "Write {k} in digits.", "What is {k} in digits?", "Which number is {k}?",
        "Write the number {k} with digits.", "Turn {k} into digits.", "How is {k} written in digits?",
        "Which digits stand for {k}?", "Give me the digits of {k}.",
    ),
    "sides": (
        "How many sides does {ak} have?", "How many sides has {ak}?", "Tell me how many sides {ak} has.",
        "Count the sides of {ak}.", "What number of sides does {ak} have?", "{ak} has how many sides?",
        "How many corners does {ak} have?", "Sides of {ak}?", "Give me the number of sides of {ak}.",
        "How many sides are there in {ak}?", "I draw {ak}. How many sides is that?",
    ),
    "home": (
        "Where does {ak} live?", "What is the home of {ak}?", "Where is the home of {ak}?", "Tell me where {ak} lives.",
        "In what place does {ak} live?", "Where can I find {ak}?", "Where does {ak} sleep?", "Home of {ak}?",
        "Name the home of {ak}.",
    ),
    "kind": (
        "What is {ak}?", "What kind of thing is {ak}?", "Tell me what {ak} is.", "Say what {ak} is.",
        "What sort of thing is {ak}?", "Do you know what {ak} is?", "Explain in one word what {ak} is.",
        "Is {ak} a tool, a plant or an animal?", "What does the word {k} mean?",
    ),
}  # fmt: skip
