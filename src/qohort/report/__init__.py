"""Reports of ablations: scores, statistics, tables, figures and the page, and the verification of a report.

Files, in reading order:
    report: Plans the runs of an ablation, reads their scores and writes the report.
    scores: Reads the scores of runs, and reports runs that cannot be counted.
    analysis: Computes the statistics of each arm.
    cells: A table, and its formats Markdown and LaTeX.
    tables: The tables of a report.
    charts: The figures, as data.
    figures: Draws the figures.
    page: Renders `report.html` from `report.html.j2`.
    verification: Trains some runs of a report again and compares.
"""
