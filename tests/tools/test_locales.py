"""The translations: nothing is missing, no number is lost, and the host serves them."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from tools.make.locales import FOLDER, LANGUAGES, english, keys, read

#: What is the same in every language.
SAME = re.compile(r"[\w .,/-]{0,24}")


def flat(texts, before=""):
    found = {}
    for name, value in texts.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def numbers(text):
    return Counter(found.replace(",", ".").rstrip(".") for found in re.findall(r"\d[\d.,]*(?:e-?\d+)?", text))


def test_the_english_texts_are_those_of_the_nodes(host):
    assert read("en") == english(host.client.object_info()), "run tools.make.locales"


def test_there_is_a_folder_for_each_language():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(["en", *LANGUAGES])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there(language):
    assert keys(read(language)) == keys(read("en"))
    assert all(text.strip() for text in flat(read(language)).values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_translated_and_keep_their_numbers(language):
    translated = flat(read(language))
    for key, text in flat(read("en")).items():
        assert translated[key] != text or SAME.fullmatch(text), key
        assert numbers(text) <= numbers(translated[key]), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_of_nodes_differ(language):
    names = [node["display_name"] for node in read(language).values()]

    assert len(set(names)) == len(names)


def test_the_host_serves_every_language(host):
    served = host.client.json("/i18n")

    for language in LANGUAGES:
        ours = served[language]["nodeDefs"]
        assert ours["DomainGalleryTrain"] == read(language)["DomainGalleryTrain"]
    assert json.dumps(served["zh"]["nodeDefs"]["DomainGalleryTrain"], ensure_ascii=False).isascii() is False
