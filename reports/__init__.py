"""Reports: the Markdown and HTML faces of a result.

``plan_report`` says what there is to say, ``markdown`` and ``html`` how it looks, ``figures`` and
``svg`` draw, ``write`` makes files. What a terminal shows is in :mod:`moesim.cli`.
"""

from moesim.reports.html import render_html
from moesim.reports.markdown import render_markdown
from moesim.reports.write import write_report

__all__ = ["render_html", "render_markdown", "write_report"]
