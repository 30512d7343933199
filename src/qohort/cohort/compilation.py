"""Which compile mode can be used here, and torch's compiler set up for small programs."""

from __future__ import annotations

import shutil
import sys
from functools import cache


@cache
def has_cpp_compiler() -> bool:
    """Whether inductor finds a C++ compiler for the CPU."""
    from torch._inductor import config, cpp_builder, exc

    try:
        return shutil.which(cpp_builder.get_cpp_compiler()) is not None
    except (exc.InvalidCxxCompiler, RuntimeError):
        return False
    finally:
        del config


def usable_mode(mode: str) -> str:
    """`mode`, or `aot_eager` in place of `inductor` where there is no C++ compiler, saying so in a line."""
    if mode == "inductor" and not has_cpp_compiler():
        print(
            "compile=inductor needs a C++ compiler and none was found: going on with compile=aot_eager", file=sys.stderr
        )
        return "aot_eager"
    return mode
