"""Print the tab completion of the command `qohort` for bash: eval "$(qohort completion)"."""

from __future__ import annotations

from qohort.cli.arguments import arguments_of, fail
from qohort.cli.main import COMMANDS

USAGE = """qohort completion

Prints the tab completion of qohort for bash: put eval "$(qohort completion)" into ~/.bashrc. Commands, keys, groups and
their choices are completed, the options of commands, and paths, also those that are values of keys."""
COMPOSED = ("train", "evaluate", "export", "report", "verify", "ledger", "reproduce", "tune", "sensitivity")
"""The commands whose keys Hydra completes."""
PATHS = ("output_dir", "reports_dir", "ledger_dir", "run", "runs", "report", "baseline", "external", "style", "to")
"""Keys whose values are paths."""
HYDRA_OPTIONS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info"),
)
"""The options of the commands whose keys Hydra completes. Importing Hydra for them would slow each new shell."""
OPTIONS = {"train": "--dry-run", "runs": "--json", "rm": "--yes"}
"""The options of a command besides --help and Hydra's."""
SCRIPT = """_qohort() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" choices="" value="" path=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        choices="COMMANDS --help --version"
    elif [[ "$word" == -* ]]; then
        choices="--help"
        [[ " COMPOSED " == *" $command "* ]] && choices="HYDRA_OPTIONS"
        case "$command" in
OPTIONS
        esac
    elif [[ "$word" == *=* && " PATHS " == *" ${word%%=*} "* ]]; then
        value="${word##*[=,[]}"
        while IFS= read -r path; do
            [ -d "${path/#~/$HOME}" ] && path="$path/"
            COMPREPLY+=("${word%"$value"}$path")
        done < <(compgen -f -- "$value")
        return
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
    print(script(), end="")


def script() -> str:
    """Return the script."""
    words = {"COMMANDS": COMMANDS, "COMPOSED": COMPOSED, "HYDRA_OPTIONS": HYDRA_OPTIONS, "PATHS": PATHS}
    text = SCRIPT
    for name, listed in words.items():
        text = text.replace(name, " ".join(listed))
    cases = (f'            {command}) choices="$choices {options}" ;;' for command, options in OPTIONS.items())
    return text.replace("OPTIONS", "\n".join(cases))
