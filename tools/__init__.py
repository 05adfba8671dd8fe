"""Commands for people who develop the pack. `dev.py` makes an environment for them and starts them there."""
