"""Joint personalization (Eq. 7), against its definition and against the methods that it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import ToyDenoiser, assert_same_gradients, conditions, inject, latents, network, plan, random, terms

from domaingallery_core.data.datasets import Dataset, Examples
from domaingallery_core.errors import InputError
from domaingallery_core.methods import noised_batch
from domaingallery_core.model.denoiser import Condition, Conditions
from domaingallery_core.run.trainer import train


def prompts():
    target, source = (Condition({"context": random(1, 3, 8, seed=seed)}) for seed in (14, 15))
    return replace(conditions(), subject=Conditions(target=target, source=source))


def noised(denoiser, subject_rows=4):
    def pair(rows, seed):
        return latents(rows, seed), latents(rows, seed + 1)

    batch = noised_batch(denoiser.process, 600, target=pair(4, 1), source=pair(4, 3))
    subject = noised_batch(denoiser.process, 600, target=pair(subject_rows, 5), source=pair(subject_rows, 7))
    return replace(batch, subject=subject)


def dataset(*, subject=True):
    def of(seed, targets=3):
        return Dataset(target=Examples(latents(targets, seed)), source=Examples(latents(6, seed + 1)))

    return replace(of(21), subject=of(31, 5) if subject else None)


def test_the_terms_are_those_of_domaingallery_and_of_plain_finetuning_on_the_subject(denoiser, adapter):
    """Each is a direct computation by another method, and so are its gradients."""
    batch, given = noised(denoiser, subject_rows=2), prompts()

    found = terms(denoiser, adapter, batch, given, plan("personalization"))
    expected = terms(denoiser, adapter, batch, given, plan("domaingallery"))
    subject = terms(denoiser, adapter, batch.subject, given.subject, plan("plain"))
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
    terms(denoiser, adapter, noised(denoiser), prompts(), plan("personalization"))

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
    found = terms(denoiser, adapter, noised(denoiser), prompts(), plan("personalization", weights=weights))

    assert found.keys() == names
    assert denoiser.rows == rows


def trained(method, data, given, **weights):
    denoiser = ToyDenoiser(network())
    with inject(denoiser.network) as adapter:
        settings = plan(method, weights=dict(**weights), steps=3)
        return train(denoiser, adapter, data, given, settings).state_dict


def test_without_a_subject_weight_a_training_is_that_of_the_domain_bit_for_bit():
    domain = trained("domaingallery", dataset(subject=False), conditions())
    same = trained("personalization", dataset(), prompts(), subject=0)
    other = trained("personalization", dataset(), prompts())

    assert all(torch.equal(domain[name], same[name]) for name in domain)
    assert not all(torch.equal(domain[name], other[name]) for name in domain)


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="Expected subject images for this training"):
        trained("personalization", dataset(subject=False), prompts())
    with pytest.raises(InputError, match="Expected the prompts of the subject"):
        trained("personalization", dataset(), conditions())
    with pytest.raises(InputError, match="domain and subject and category latents of one size"):
        small = Examples(torch.zeros(1, 2, 2, 2))
        replace(dataset(), subject=Dataset(target=small, source=small))
