"""What `python main.py` can do besides training."""

from __future__ import annotations

from agents.commands.compare import write_comparison
from agents.commands.evaluate import evaluate
from agents.commands.export import check_finished, export_program, export_with_card
from agents.commands.portable import check_installed
from agents.commands.predict import predict
from agents.commands.study.plan import load_study
from agents.commands.study.runner import print_commands, run_study
from agents.commands.trained import trained_agent
from agents.trainer import Trainer
from config.lookup import find_run
from config.parsing import Command
from utils.checkpoint_io import best_or_last
from utils.console import console, quiet_libraries
from utils.run_folder import RunFolder


def execute(command: Command) -> int:
    """Carries a command out and returns the exit code."""
    hparams, runs_dir = command.hparams, command.hparams.run.dir
    if command.study:
        study = load_study(command.study, command.seeds, command.overrides, runs_dir)
        return print_commands(study) if command.print_commands else run_study(study)
    if command.compare:
        folders = [RunFolder(find_run(run, runs_dir)) for run in command.compare]
        print(write_comparison(folders, runs_dir))
        return 0
    if command.export:
        return _export(command, RunFolder(find_run(command.export, runs_dir)))
    if command.evaluate:
        return evaluate(RunFolder(find_run(command.evaluate, runs_dir)), hparams)
    if command.predict and command.images:
        folder = RunFolder(find_run(command.predict, runs_dir))
        agent, hparams, _ = trained_agent(folder, hparams, best_or_last(folder))
        return predict(agent, hparams, folder, command.images)
    quiet_libraries()
    for sentence in command.notes:
        console.info("%s", sentence)
    return Trainer(hparams, command.experiment, command.tried_out).run()


def _export(command: Command, folder: RunFolder) -> int:
    check_finished(folder)
    form = command.format or "safetensors"
    check_installed(form)
    # The whole of a segmentation is what was tested; a backbone alone is what training left.
    whole = command.hparams.task == "segmentation" and form != "safetensors"
    checkpoint = best_or_last(folder) if whole else folder.last
    agent, hparams, _ = trained_agent(folder, command.hparams, checkpoint)
    if form == "safetensors":
        lines = export_with_card(agent, hparams, folder)
    else:
        lines = export_program(agent, hparams, folder, form, checkpoint)
    print("\n".join(lines))
    return 0
