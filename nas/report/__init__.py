"""What a search, a training, a compression or a profile found, for people: text, pictures, a page.

A study is shown from the Optuna study and the content of result.json (`summary`), any key of which
may be missing: an interrupted search is reported with what it has.
"""
