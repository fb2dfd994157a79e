"""What a search found, for people: a terminal table, a picture, one self-contained HTML page.

All are made from the Optuna study and the content of result.json (`summary`), any key of which may
be missing: an interrupted search is reported with what it has.
"""

from nas.report.html.page import html
from nas.report.plots.pareto import pareto_png
from nas.report.study_rows import Network, front, networks
from nas.report.tables.search import table

__all__ = ["Network", "front", "html", "networks", "pareto_png", "table"]
