"""What `python main.py` can do; `execute` says which it is."""
