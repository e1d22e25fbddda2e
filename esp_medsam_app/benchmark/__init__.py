"""How fast this machine segments: passes, files and requests, measured beside each other."""
