"""Reports of ablations and of any runs: scores, statistics, tables, figures, the page, verification, and the ledger.

Files, in reading order:
    report: Plans the runs of an ablation, or finds runs, reads their scores and writes the report.
    found: Finds runs by pattern, without a manifest, and makes arms of them.
    combined: Makes one ablation of several.
    external: Reads published results, which are shown beside the runs.
    scores: Reads the scores of runs, and reports runs that cannot be counted.
    variation: Bands of curves that show how runs vary.
    analysis: Computes the statistics of each arm.
    cells: A table, and its formats Markdown and LaTeX.
    tables: The tables of a report.
    style: What a report shows and how it looks, and the colour of each arm.
    panels: The panels of figures, as data.
    charts: Selects the figures and collects their data.
    figures: Draws the figures.
    interactive: The data of the page's interactive figures, which `report.js.j2` draws.
    page: Renders `report.html` from `report.html.j2`.
    verification: Trains some runs of a report again and compares.
    ledger: The file of published runs: commands, code, machine, fingerprints.
    recording: Writes it from finished runs.
    commands: The overrides that train a run again, checked by composing them.
    reproduction: Trains runs of the ledger again and compares.
    retraining, verdicts: What verification and reproduction share.
    ledger_tables: The tables of the manual, made from the ledger.
"""
