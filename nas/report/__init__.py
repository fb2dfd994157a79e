"""What a search found, for people: a terminal table, a picture, one self-contained HTML page.

All are made from the Optuna study and the content of result.json (`summary`), any key of which may
be missing: an interrupted search is reported with what it has.
"""

from nas.report.page import html
from nas.report.png import pareto_png
from nas.report.records import Network, front, networks
from nas.report.table import table

__all__ = ["Network", "front", "html", "networks", "pareto_png", "table"]
