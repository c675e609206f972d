"""Executes the command that `python main.py` was given.

Importing torch takes seconds, so each command imports what it needs itself.
"""

from __future__ import annotations

from agents.commands.study.plan import load_study
from config.lookup import find_run
from config.parsing import Command
from utils.console import console, quiet_libraries
from utils.run_folder import RunFolder
from utils.text import one_line


def execute(command: Command) -> int:
    """Carries a command out and returns the exit code.

    Raises:
        ValueError: memory is exhausted, or the GPU fails, outside of training steps, which give
            their own advice.
    """
    try:
        return _execute(command)
    except (RuntimeError, MemoryError) as error:
        from utils.device import best_device
        from utils.gpu_errors import gpu_failure
        from utils.memory import held_by_others, is_out_of_memory

        if failure := gpu_failure(error):
            raise ValueError(failure) from error
        if not is_out_of_memory(error):
            raise
        others = held_by_others(best_device(command.hparams.trainer.accelerator))
        raise ValueError(
            f"Memory is exhausted ({one_line(str(error), 200)}).{others} Smaller images need less, "
            "and fewer at once (--data.batch_size)."
        ) from error


def _execute(command: Command) -> int:
    quiet_libraries()  # before they are imported
    hparams, runs_dir = command.hparams, command.hparams.run.dir
    if command.study:
        study = load_study(command.study, command.seeds, command.overrides, runs_dir)
        if command.print_commands:
            for line in study.commands_left():
                print(line, flush=True)
            return 0
        from agents.commands.study.runner import run_study

        return run_study(study)
    if command.compare:
        folders = [RunFolder(find_run(run, runs_dir)) for run in command.compare]
        from agents.commands.compare import write_comparison

        print(write_comparison(folders, runs_dir))
        return 0
    if command.export:
        from agents.commands.export import export_run

        folder = RunFolder(find_run(command.export, runs_dir))
        print("\n".join(export_run(folder, hparams, command.format or "safetensors")))
        return 0
    if command.evaluate:
        from agents.commands.evaluate import evaluate

        return evaluate(RunFolder(find_run(command.evaluate, runs_dir)), hparams)
    if command.predict and command.images:
        from agents.commands.predict import predict

        return predict(RunFolder(find_run(command.predict, runs_dir)), hparams, command.images)
    from agents.trainer import Trainer

    for sentence in command.notes:
        console.info("%s", sentence)
    return Trainer(hparams, command.experiment, command.tried_out).run()
