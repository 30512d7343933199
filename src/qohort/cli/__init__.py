"""Command line: what every script does before and after its task.

Files, in reading order:
    entry_point: Makes a script's main function, which checks the command line and reports errors in one line.
    streams: Standard output and error that never end a run.
    jobs: Expands a sweep into jobs, so that all of them can be checked before the first one starts.
"""
