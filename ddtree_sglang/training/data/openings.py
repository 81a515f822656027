"""First words of user turns where many thousand conversations are written: more of them than `SEED_PHRASES`."""

from __future__ import annotations

from ddtree_sglang.training.data.self_generation import SEED_PHRASES

_MORE = """
What is|What are|How do I|How does|How can I|Can you|Tell me about|Describe|Who was|Why is
Write a C function|Write a bash script|Write an HTML page|Write a Java class|Write a Python program
Write a unit test|Write a regular expression|Fix this code:|Write a poem about|Write a letter to
Write an essay about|Write a product description for|Give me five|Give three examples of|List the
Compare|What happens when|Tell me a story|Translate|Convert|Solve for x:|Find the area of
A train|A farmer|Tom has|Maria buys|A car|A recipe|There are|The sum of|What is the value of
Calculate the|A rectangle has|If a worker|Rewrite this|Rewrite the sentence|Shorten this text:
Make this sentence|Turn this into|Write this in the past tense:|Summarize:|Paraphrase:|Edit this text:
Simplify:|Complete the sentence:|Classify|Extract the|Answer the question:|Read the text:
Given the following|Create a table of|Create a JSON object|Plan a|Suggest|Recommend|Explain why
Explain the concept of|Explain the difference|Define|What does it mean|Is it true that|Should I
I have a|I want to|I am|My|Please|Help me|You are|Imagine|In the year|During the
"""

OPENINGS = (*SEED_PHRASES * 3, *(phrase for line in _MORE.strip().splitlines() for phrase in line.split("|")))
"""As often as each is wanted: without the first ones three times, turns that the target begins itself were rare."""
