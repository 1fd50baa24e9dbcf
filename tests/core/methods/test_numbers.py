"""The numbers of the methods, as a table: those of the paper, of its code, and of what is added to it."""

from __future__ import annotations

import pytest
from said import explained, said

from domaingallery_core.methods import METHODS, MethodSettings, Term
from domaingallery_core.settings import Setting

#: Of each method: its steps, its learning rate, and its terms with their weights.
METHOD = {
    "erasure": (500, 1e-4, {"prior": 1.0, "disentanglement": 10.0, "erasure": 10.0}),
    "domaingallery": (1000, 5e-5, {"target": None, "prior": 1.0, "disentanglement": 10.0, "similarity": 1.0}),
    "personalization": (
        1000,
        5e-5,
        {"target": None, "prior": 1.0, "disentanglement": 10.0, "similarity": 1.0, "subject": 1.0,
         "subject_prior": 1.0},
    ),
}  # fmt: skip
#: Of each term: the images that it is about, the fewest of them that say something, whether it is Eq. 1.
TERM = {
    "target": ("target", 1, True),
    "prior": ("source", 1, True),
    "disentanglement": ("source", 1, False),
    "erasure": ("source", 1, False),
    "similarity": ("source", 3, False),
}


@pytest.mark.parametrize("name", METHOD)
def test_a_method_has_the_numbers_of_the_paper(name):
    steps, rate, weights = METHOD[name]

    method = METHODS[name]

    assert (method.steps, method.learning_rate) == (steps, rate)
    assert {term.name: term.weight for term in method.terms} == weights
    own = {name: weight for name, weight in weights.items() if name not in ("target", "subject_prior")}
    assert MethodSettings(name=name).weights == method.weights == own


def test_a_term_is_about_these_images_and_needs_so_many():
    terms = {term.name: term for name in METHOD for term in METHODS[name].terms}

    for name, expected in TERM.items():
        term = terms.pop(name)
        assert (term.reads, term.least_batch, term.regresses) == expected, name
        assert term.times == ()
    assert terms.keys() == {"subject", "subject_prior"}
    assert all(term.regresses and term.least_batch == 1 for term in terms.values())
    assert terms["subject"].times == () and terms["subject_prior"].times == ("subject", "prior")


def test_every_weight_that_a_user_sets_is_explained():
    terms = [term for name in METHOD for term in METHODS[name].terms if term.name in METHODS[name].weights]

    assert {term.name for term in terms} == {"prior", "disentanglement", "erasure", "similarity", "subject"}
    assert all(term.help.startswith("Weight of ") and term.help.endswith(".") for term in terms)


def test_of_a_term_what_is_not_said_is_this():
    term = Term(name="style", reads="target")

    assert (term.weight, term.times, term.least_batch, term.regresses, term.help) == (1.0, (), 1, False, "")


def test_what_can_be_set_of_all_methods_is_the_papers_unless_it_is_said_otherwise():
    assert said(MethodSettings) == {
        "offset_noise": (0.0, Setting(most=1.0, step=0.01)),
        "min_snr": (0.0, Setting(most=100.0, step=0.1)),
        "denoise_steps": (5, Setting(least=1, most=50)),
        "denoise_guidance": (1.0, Setting(most=30.0, step=0.1)),
        "similarity_scale": ("released", Setting(choices=("released", "paper"))),
    }
    assert explained(MethodSettings) == said(MethodSettings).keys()
