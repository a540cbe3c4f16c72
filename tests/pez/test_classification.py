"""Settings and examples of text classification, without a model."""

import pytest

from pez.classification import Examples, SearchSettings, Template, read_verbalizer
from pez.errors import UserError

WORDS = {"negative": "terrible", "positive": "great"}


@pytest.mark.parametrize(
    "text", ["{text} It was {label}", "{prompt} {text} {label} .", "{prompt}{text} was {label}", "a"]
)
def test_a_template_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"expected one like '\{prompt\} \{text\} It was \{label\}'"):
        Template(text)


def test_a_template_keeps_the_words_around_the_text() -> None:
    template = Template("{prompt} Review: {text} . It was {label}")
    assert (template.before, template.after) == ("Review: ", " . It was")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("negative", "expected label=word pairs"),
        ("negative=bad", "one label; expected two or more"),
        ("negative=bad,positive=bad", "has the word 'bad' twice"),
        ("negative=bad,negative=good", "has the label 'negative' twice"),
    ],
)
def test_a_verbalizer_that_tells_no_labels_apart_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_verbalizer(text)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("fine", "positive"), (" ", "negative")], "the text of row 1 of T is empty"),
        ([("fine", "positive"), (None, "negative")], "the text of row 1 of T is empty"),
        ([("fine", "positive"), ("poor", "mixed")], "row 1 of T has the label 'mixed'"),
        ([("fine", "positive"), ("good", "positive")], "every row of T has the label 'positive'"),
        ([], "T has no rows"),
    ],
)
def test_rows_that_are_no_examples_are_refused(rows: list[tuple[object, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Examples.of(rows, WORDS, "T")


def test_no_text_is_in_two_parts_and_the_order_of_rows_does_not_matter() -> None:
    rows: list[tuple[object, object]] = [(f"text {i % 90}", ("negative", "positive")[i % 2]) for i in range(100)]
    parts = Examples.of(rows, WORDS, "T").split(10, 20)
    assert [len(part) for part in parts] == [62, 10, 18]  # 90 different texts, a fifth of which is 18
    texts = [set(part.texts) for part in parts]
    assert not (texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2])
    again = Examples.of(rows[::-1], WORDS, "T").split(10, 20)
    assert [set(part.texts) for part in again] == texts


@pytest.mark.parametrize(
    "values", [{"tokens": 1}, {"steps": 0}, {"clip": 0.0}, {"fluency": 1.0}, {"learning_rate": -1.0}]
)
def test_settings_without_meaning_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected"):
        SearchSettings(**values)  # type: ignore[arg-type]
