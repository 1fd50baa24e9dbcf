"""Joint personalization (Eq. 7), against its definition and against the methods that it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import (
    ToyDenoiser,
    assert_same_gradients,
    conditions,
    inject,
    latents,
    network,
    part,
    plan,
    random,
    terms,
)

from domaingallery_core.errors import InputError
from domaingallery_core.methods import noised_batch
from domaingallery_core.model.denoiser import Condition, Conditions
from domaingallery_core.run.trainer import train


def prompts():
    target, source = (Condition({"context": random(1, 3, 8, seed=seed)}) for seed in (14, 15))
    return Conditions(target=target, source=source)


def noised(denoiser, subject_rows=4):
    def of(given, rows, seed):
        target, source = ((latents(rows, n), latents(rows, n + 1)) for n in (seed, seed + 2))
        return noised_batch(denoiser.process, 600, given, target=target, source=source)

    return {"domain": of(conditions(), 4, 1), "subject": of(prompts(), subject_rows, 5)}


DOMAIN = part(latents(3, 21), latents(6, 22))
SUBJECT = part(latents(5, 31), latents(6, 32), name="olis", role="subject", prompts=prompts())


def test_the_terms_are_those_of_domaingallery_and_of_plain_finetuning_on_the_subject(denoiser, adapter):
    """Each is a direct computation by another method, and so are its gradients."""
    step = noised(denoiser, subject_rows=2)

    found = terms(denoiser, adapter, plan("personalization"), **step)
    expected = terms(denoiser, adapter, plan("domaingallery"), **step)
    subject = terms(denoiser, adapter, plan("plain"), step["subject"])
    expected |= {"subject": subject["target"], "subject_prior": subject["prior"]}

    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9, check_dtype=False)
        assert_same_gradients(found[name], expected[name], adapter)


def test_the_total_is_equation_7():
    settings = plan("personalization", weights=dict(prior=3, subject=5)).method
    ones = {name: torch.tensor(1.0) for name in ("target", "prior", "subject", "subject_prior")}

    assert float(settings.total(ones)) == 1 + 3 + 5 * (1 + 3)


def test_no_row_is_evaluated_twice(denoiser, adapter):
    terms(denoiser, adapter, plan("personalization"), **noised(denoiser))

    # target, source, source to target, both of the subject; base; the other steps with and without gradient
    assert denoiser.rows == [20, 4] + 8 * [4]


@pytest.mark.parametrize(
    ("weights", "rows", "names"),
    [
        (dict(similarity=0, subject=0), [8, 4], {"target", "prior", "disentanglement"}),
        (dict(similarity=0, disentanglement=0, prior=0), [8], {"target", "subject"}),
    ],
)
def test_a_weight_of_zero_costs_nothing(denoiser, adapter, weights, rows, names):
    found = terms(denoiser, adapter, plan("personalization", weights=weights), **noised(denoiser))

    assert found.keys() == names
    assert denoiser.rows == rows


def trained(method, *parts, **weights):
    denoiser = ToyDenoiser(network())
    with inject(denoiser.network) as adapter:
        settings = plan(method, weights=dict(**weights), steps=3)
        return train(denoiser, adapter, parts, settings).state_dict


def test_without_a_subject_weight_a_training_is_that_of_the_domain_bit_for_bit():
    domain = trained("domaingallery", DOMAIN)
    same = trained("personalization", DOMAIN, SUBJECT, subject=0)
    other = trained("personalization", DOMAIN, SUBJECT)

    assert all(torch.equal(domain[name], same[name]) for name in domain)
    assert not all(torch.equal(domain[name], other[name]) for name in domain)


def test_what_is_missing_is_named():
    small, prompt = torch.zeros(3, 2, 2, 2), Conditions(target=prompts().target)
    for parts, message in (
        ([], "images of a subject for this training"),
        ([replace(SUBJECT, source=None)], "source images of 'olis' for this training"),
        ([replace(SUBJECT, prompts=prompt)], "the source prompt of 'olis' for this training"),
        ([part(small, small, name="olis", role="subject")], "domain and subject latents of one size"),
        ([replace(SUBJECT, name=DOMAIN.name)], "parts of different names, got 'images' twice"),
    ):
        with pytest.raises(InputError, match=f"Expected {message}"):
            trained("personalization", DOMAIN, *parts)
