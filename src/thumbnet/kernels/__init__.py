"""Kernels in C, where a compiler is at hand; everything works, more slowly, without."""

from thumbnet.kernels.library import Library, find_compiler, load_library
from thumbnet.kernels.threads import on_own_cores

__all__ = ["Library", "find_compiler", "load_library", "on_own_cores"]
