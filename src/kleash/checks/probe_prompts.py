"""Built-in prompts for sampling from a language model: questions for a chat model, beginnings of texts for others."""

from __future__ import annotations

from kleash.data.group import Group

QUESTIONS = (
    "Name three fruits that are yellow.",
    "In one sentence, why does ice float on water?",
    "What is the opposite of 'generous'?",
    "Write a two-line poem about rain.",
    "How many days are there in a leap year?",
    "Give me a short tip for falling asleep faster.",
    "Translate 'good morning' into Spanish.",
    "What should I pack for a day at the beach? Keep it brief.",
    "Explain in one sentence what a library does.",
    "Which is larger, a whale or a bus?",
    "Suggest a name for a grey cat.",
    "What is 7 plus 5?",
    "Write a polite one-sentence reply that declines an invitation.",
    "What colour do you get from blue and yellow?",
    "Give one reason to drink enough water.",
    "Finish the sentence: The train was late because",
    "What does a baker do?",
    "Name a city in Italy.",
    "How do I boil an egg? Two sentences, please.",
    "Is a tomato a fruit or a vegetable?",
    "Tell me a very short joke.",
    "What is the capital of Japan?",
    "Write a one-line birthday wish for a colleague.",
    "Why do leaves fall in autumn? One sentence.",
    "Which month comes after August?",
    "Give me two words that rhyme with 'light'.",
    "What is a good present for a gardener?",
    "Summarise in five words: the sun rises in the east and sets in the west.",
    "How many legs does a spider have?",
    "What do bees make?",
    "Correct the grammar: 'She go to school every days.'",
    "Name one use of a paper clip besides holding paper.",
    "What is the boiling point of water in degrees Celsius?",
    "Write a short headline about a lost dog that came home.",
    "What language is spoken in Brazil?",
    "Give one tip for a job interview.",
    "What is the main ingredient of bread?",
    "Describe the moon in one sentence.",
    "Name an instrument with strings.",
    "What can I do about hiccups?",
    "Is it safe to look at the sun? Answer briefly.",
    "How many minutes are in two hours?",
    "Say thank you in a warm way.",
    "What is the past tense of 'run'?",
    "Name two planets.",
    "Give me a one-sentence summary of what rain is.",
    "Which animal is known for its long neck?",
    "What is a synonym of 'quick'?",
)

BEGINNINGS = (
    "The weather in the mountains changed quickly, and",
    "To make a simple soup, you first",
    "The old bridge over the river was",
    "In the beginning of the last century, most people",
    "When the meeting was over, she",
    "The main difference between cats and dogs is",
    "Scientists have long wondered why",
    "On the first day of school, the children",
    "A good book can",
    "The price of bread rose because",
    "He opened the letter and",
    "The city council decided that",
    "Plants need light in order to",
    "After the storm, the harbour",
    "The museum has a collection of",
    "One way to learn a language is",
    "The train to the coast leaves",
    "Many birds fly south when",
    "The first rule of the game is",
    "My grandmother used to say that",
    "The report describes how",
    "Under the microscope, the cells",
    "It was late in the evening when",
    "The recipe calls for two cups of",
)


def prompts(*, chat: bool) -> list[Group]:
    """Groups without responses: turns for a chat template, or plain text to continue."""
    if chat:
        return [Group(({"role": "user", "content": question},)) for question in QUESTIONS]
    return [Group(beginning) for beginning in BEGINNINGS]
