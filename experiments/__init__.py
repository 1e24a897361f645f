"""The commands."""

from syscall_lm import cpu

cpu.one_arena()  # before their imports start threads
