"""Prompts for scoring a drafter, 20 of each of four kinds, written for this project and never trained on.

The target writes its training conversations itself. These prompts are like those of users, so a score on them is closer
to what users will see.
"""

from __future__ import annotations

_CODE = """
Write a Python function that returns the n-th Fibonacci number without recursion.
Write a function in Python that checks whether a string is a palindrome, ignoring case and spaces.
Write a Python class for a stack with push, pop and peek.
Show me how to read a CSV file in Python and print the third column.
Write a SQL query that finds the five customers with the most orders.
Write a bash script that renames all .jpeg files in a folder to .jpg.
Write a Python function that merges two sorted lists into one sorted list.
How do I reverse a linked list in Python? Give the code.
Write a JavaScript function that removes duplicates from an array.
Write a Python decorator that prints how long a function took.
Write a function that counts how often each word occurs in a text.
Write a Python generator that yields the prime numbers.
Explain what this does and fix it: def add(a, b): retrun a + b
Write an HTML page with a form that asks for a name and an email address.
Write a Python function that converts Celsius to Fahrenheit, with a docstring and two examples.
Write a C function that swaps two integers by pointer.
Write a Python function that flattens a nested list.
Write a unit test in Python for a function named is_even.
Write a Python program that plays rock, paper, scissors against the user.
Write a function that finds the longest common prefix of a list of strings.
"""

_ARITHMETIC = """
A baker makes 24 rolls an hour for 6 hours and sells 110 of them. How many are left?
Tom has 3 boxes with 15 marbles each and gives away 17 marbles. How many marbles does he keep?
A train travels 60 miles per hour for 2.5 hours. How far does it go?
A shirt costs 40 dollars and is sold at a discount of 25 percent. What is the price now?
Anna reads 12 pages a day. How many days does she need for a book of 180 pages?
A tank holds 500 litres and loses 8 litres an hour. How much is in it after 15 hours?
Four friends share a bill of 92 dollars equally and each adds 3 dollars of tip. What does each pay?
A garden is 9 metres long and 7 metres wide. What are its area and its perimeter?
A car uses 6 litres of fuel per 100 kilometres. How much does it use for 350 kilometres?
Sarah is 4 years older than twice her brother's age. Her brother is 7. How old is Sarah?
A worker earns 18 dollars an hour and works 37 hours. How much does he earn?
There are 28 students in a class and three quarters of them play a sport. How many do not?
A recipe for 4 people needs 300 grams of rice. How much is needed for 10 people?
What is 17 times 23? Explain each step.
A shop sells pens at 3 for 2 dollars. How much do 21 pens cost?
John runs 5 kilometres on Monday, twice as far on Tuesday and 3 kilometres on Wednesday. How far in all?
A rope of 45 metres is cut into pieces of 2.5 metres. How many pieces are there?
The sum of three consecutive numbers is 72. What are the numbers?
A phone plan costs 20 dollars a month and 5 cents a minute. What is the bill for 130 minutes?
A farmer has 15 cows and 22 chickens. How many legs do the animals have together?
"""

_OPEN = """
Why is the sky blue?
What makes a good friend?
Explain how vaccines work to a ten-year-old.
What are the main causes of the First World War?
How can I sleep better at night?
Describe what a black hole is.
What should I see on a weekend in Rome?
What is the difference between weather and climate?
Give me five ideas for a healthy breakfast.
How does a bicycle stay upright?
What are the advantages and disadvantages of remote work?
Who was Marie Curie and why is she remembered?
How do plants make their own food?
What is inflation and why does it matter?
Tell me a short story about a lighthouse keeper.
How do I start learning to play the guitar?
What happens in the human body during exercise?
Why do cats purr?
What is the best way to prepare for a job interview?
Explain what machine learning is in simple terms.
"""

_REWRITE = """
Rewrite this more politely: Give me the report now.
Correct the grammar: She don't likes to going at the market on sundays.
Shorten this to one sentence: The meeting, which was planned for Monday, had to be moved because the manager was ill.
Rewrite in the past tense: I walk to school, I meet my friend and we talk about the game.
Make this sound more formal: Hey, just wanted to check if you got my stuff.
Turn this into a list: We need milk, two loaves of bread, some apples and a box of eggs.
Rewrite this in simpler words: The committee unanimously endorsed the implementation of the proposal.
Change this from the passive to the active voice: The window was broken by the boy.
Summarise in one sentence: Bees visit flowers to collect nectar. They carry pollen, and so plants can make seeds.
Rewrite this as an email to a teacher: I am sick, I can't come to class, please send homework.
Make this text more exciting: The man opened the door and saw a dog.
Rewrite this as a question: You would like to join us for dinner.
Paraphrase: Practice every day, and you will get better over time.
Rewrite this in the third person: I lost my keys and had to wait outside my house for two hours.
Fix the punctuation: its raining outside lets stay home and watch a movie said maria
Rewrite as a short product description: This bottle keeps water cold for a day and does not leak.
Rewrite this without repeating words: The big house had a big garden with a big tree and a big pond.
Translate this headline into plain English: Central Bank Hikes Rates Amid Mounting Price Pressures.
Rewrite this as dialogue: Peter asked Mary for the time, and she told him that it was noon.
Expand this into a paragraph: Reading is good for children.
"""


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if line)


HELD_OUT_PROMPTS: dict[str, tuple[str, ...]] = {
    "code": _lines(_CODE),
    "arithmetic": _lines(_ARITHMETIC),
    "open question": _lines(_OPEN),
    "rewriting": _lines(_REWRITE),
}
"""Kind of prompt -> user messages."""
