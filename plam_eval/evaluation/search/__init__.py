"""`plam search`: merges proposed one after the other by what earlier ones scored, and one report on other documents.

What is searched (`config`) makes a `space`, in a `job`'s folder. `runner` asks the `study` for settings and has them
answered on one resident model (`evaluator`); every answer is kept (`answers`), hopeless settings are given up early.
The chosen merge is then evaluated on the other documents as a sweep; `findings` reads back what all of it says.
"""
