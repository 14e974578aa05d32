"What the command says to words that it does not know."

import pytest

from scalekit.cli import main


def test_a_verb_or_an_option_that_is_not_there_says_which_was_meant(capsys):
    for words, meant in (
        (["rnu", "a.ipynb"], "there is no verb 'rnu'. Did you mean 'run'?"),
        (["run", "a.ipynb", "--retrys", "3"], "Did you mean --retries?"),
        (["run", "a.ipynb", "--lr", "0.1"], "A parameter: -p lr=VALUE"),
        (["run", "a.ipynb", "lr=0.1"], "A parameter: -p lr=0.1"),
        (["show", "latest", "again"], "'again' is one word too many"),
        (["runs", "-n", "0"], "a whole number from 1 on, got '0'"),
    ):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2 and meant in capsys.readouterr().err


def test_mistakes_in_names_of_states_and_folders_are_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["runs", "--state", "succeded"], "Did you mean 'succeeded'?"),
        (["new", "train", "nowhere/mine.ipynb"], "there is no folder nowhere. Make it first"),
        (["new", "train", "nowhere/"], "there is no folder nowhere. Make it first"),
    ):
        assert main(words) == 2 and said in capsys.readouterr().err
    assert main(["new", "train", "."]) == 0 and (tmp_path / "train.ipynb").exists()
