"""Whether two LaTeX answers say the same, by rules that abstain where they cannot tell.

boxes.py finds the answers in a text, claims.py cuts an answer into statements, expression.py and
units.py read their sides, comparing.py compares two statements, matching.py whole answers.
No text is ever executed and no symbolic algebra runs: formulas are compared by their values at
fixed points, so the time of a comparison is bounded by the length of the formulas.
"""
