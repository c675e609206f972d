"""The commands of `python main.py`; `execute` chooses one."""
