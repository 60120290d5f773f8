"""Cures are data: Python users and users of the command line read the same cure, each in their own words."""

import pickle

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_vaes.cli import Options, errors
from pyro_vaes.cli.build import build_pair, load_run_data
from pyro_vaes.cli.errors import in_options
from pyro_vaes.errors import Cure, MissingFileError, UsageError, leave_out, use_bound, with_cures
from pyro_vaes.infer import check


@pytest.mark.parametrize(
    ("cure", "python", "typed"),
    [
        (Cure("resize", 64), "Pass resize=64.", "Pass --resize 64."),
        (Cure("key", "a"), "Pass key='a'.", "Pass --key a."),
        (Cure("root", detail=" or ask"), "Pass root= or ask.", "Pass --root or ask."),
        (leave_out("key", "label_key"), "Leave out key and label_key.", "Leave out --key and --label-key."),
        (use_bound(), "Use Trace_ELBO.", "Choose --bound trace."),
        (Cure("files", words="copy them again"), "Copy them again.", "Copy them again."),
    ],
)
def test_one_cure_in_both_languages(cure: Cure, python: str, typed: str):
    error = UsageError("This is wrong.", cure)
    assert str(error) == f"This is wrong. {python}"
    assert in_options(error) == f"This is wrong. {typed}"


@pytest.mark.parametrize("cure", [Cure("verify", False), Cure("sites", ("z",)), leave_out("value_range")])
def test_cures_without_an_option_are_left_out(cure: Cure):
    assert in_options(UsageError("This is wrong.", cure)) == "This is wrong."
    assert in_options(UsageError("This is wrong.", cure, use_bound())) == "This is wrong. Choose --bound trace."


def test_alternatives_make_one_sentence():
    assert with_cures("No", ["a", "b", "c"]) == "No. A, b, or c."
    assert with_cures("site\nz", ["a"]) == "site\nz\nA.", "a table keeps its last line"
    assert with_cures("Nothing helps.", []) == "Nothing helps."


def test_an_error_keeps_its_kind_and_its_cures():
    error = MissingFileError("There is no file.", Cure("root"))
    assert isinstance(error, FileNotFoundError) and not isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.message, again.cures) == (
        "There is no file. Pass root=.",
        "There is no file.",
        (Cure("root"),),
    )


def test_a_check_hands_the_cures_of_its_problems_on():
    options = Options(model="hierarchical_vae", latent_dim=(3, 2), hidden=(8,), limit=40)
    data = load_run_data(options)
    pair = build_pair(options.resolved(data), data)
    report = check(pair.model, pair.guide, data.train.batch(slice(0, 5)), loss=TraceMeanField_ELBO())
    with pytest.raises(ValueError, match="analytic KL") as raised:
        report.raise_if_fatal()
    assert use_bound() in raised.value.cures
    assert str(raised.value).endswith("Use Trace_ELBO, or a top-down guide.")
    assert in_options(raised.value).endswith("Choose --bound trace, or add --top-down.")


def test_an_error_inside_a_bound_keeps_its_cures():
    def refuse(*args: object) -> torch.Tensor:
        raise UsageError("This site is wrong.", use_bound())

    options = Options(latent_dim=(2,), hidden=(8,), limit=40)
    data = load_run_data(options)
    pair = build_pair(options.resolved(data), data)
    (problem,) = check(refuse, pair.guide, data.train.batch(slice(0, 5))).problems
    assert problem.cures == (use_bound(),)
    assert problem.message == "The model fails on this batch: This site is wrong."
    assert problem.text.endswith("wrong. Use Trace_ELBO.")


def test_no_cure_is_read_out_of_english():
    assert not hasattr(errors, "re")
