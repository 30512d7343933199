"""Print the tab completion of the command `qohort` for bash: eval "$(qohort completion)"."""

from __future__ import annotations

from qohort.cli.arguments import arguments_of, fail
from qohort.cli.main import COMMANDS

USAGE = """qohort completion

Prints the tab completion of qohort for bash: put eval "$(qohort completion)" into ~/.bashrc. Commands, keys, groups and
their options are completed, and paths."""
COMPOSED = ("train", "evaluate", "report", "verify", "ledger", "reproduce", "tune", "sensitivity")
"""The commands whose keys Hydra completes."""
SCRIPT = """_qohort() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" choices=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        choices="COMMANDS"
    elif [[ " COMPOSED " == *" $command "* ]]; then
        choices=$(COMP_LINE="qohort ${COMP_LINE#*"$command" }" qohort "$command" -sc query=bash 2> /dev/null)
    fi
    COMPREPLY=($(compgen -o default -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _qohort qohort
"""


def main() -> None:
    """Print the script."""
    if arguments_of(USAGE):
        fail('completion takes no arguments: eval "$(qohort completion)"')
    print(SCRIPT.replace("COMMANDS", " ".join(COMMANDS)).replace("COMPOSED", " ".join(COMPOSED)), end="")
