"""Reports of ablations and of any runs: scores, statistics, tables, figures, the page, and verification.

Files, in reading order:
    report: Plans the runs of an ablation, or finds runs, reads their scores and writes the report.
    found: Finds runs by pattern, without a manifest, and makes arms of them.
    external: Reads published results, which are shown beside the runs.
    scores: Reads the scores of runs, and reports runs that cannot be counted.
    analysis: Computes the statistics of each arm.
    cells: A table, and its formats Markdown and LaTeX.
    tables: The tables of a report.
    charts: The figures, as data.
    figures: Draws the figures.
    page: Renders `report.html` from `report.html.j2`.
    verification: Trains some runs of a report again and compares.
"""
