"""Command line: what every script does before and after its task.

Files, in reading order:
    entry_point: Makes a script's main function, which checks the command line and reports errors in one line.
    jobs: Expands a sweep into jobs, so that all of them can be checked before the first one starts.
"""
