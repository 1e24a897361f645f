"""How the embedded corpus is recorded: programs, intrusions and what carries them."""
