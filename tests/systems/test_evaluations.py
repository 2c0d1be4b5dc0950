import pytest

from var.errors import UserError
from var.published import CHECKPOINTS, blueprint, evaluation
from var.sampling import Sampling
from var.systems.evaluations import EVALUATIONS

CLOSERS = {c.decoding["closer"] for c in CHECKPOINTS.values() if c.decoding}
GENERATORS = [
    name
    for name, checkpoint in CHECKPOINTS.items()
    if "" not in checkpoint.files and "t2i" not in name and name not in CLOSERS
]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_classes_can_be_measured_as_it_was(name: str) -> None:
    made, checkpoint = evaluation(name), CHECKPOINTS[name]
    schedule = blueprint(_like(name)).schedule
    assert schedule is not None
    Sampling(**made.sampling).check(len(schedule))
    assert made.per_class == 50 and made.decoding == checkpoint.decoding
    assert (made.resize is None) == (made.size == checkpoint.size)
    assert str(made.size) in made.reference and made.reference.endswith(".npz")


def _like(name: str) -> str:
    """Return a checkpoint of the same schedule that is known without its files."""
    return "var-d30" if CHECKPOINTS[name].system == "code" else name


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_score_has_a_source_and_a_likely_value(name: str) -> None:
    ranges = {"FID": 7, "rFID": 3, "IS": 400, "precision": 1, "recall": 1}
    scores = evaluation(name).scores
    assert scores[0].metric in ("FID", "rFID")
    for score in scores:
        assert score.source.strip() and 0 < score.value < ranges[score.metric]
    assert len({(s.metric, s.source) for s in scores}) == len(scores), "a source says one thing"


def test_tokenizers_are_measured_against_validation_images() -> None:
    assert evaluation("llamagen-vq16").reference == "ImageNet validation"
    assert evaluation("llamagen-vq16").sampling == {}


def test_the_figure_to_reach_first_is_that_of_the_authors() -> None:
    scores = [s for s in evaluation("var-d20").scores if s.metric == "FID"]
    assert [(s.value, s.source) for s in scores][0] == (2.95, "VAR README")
    assert len(scores) == 3, "the sources disagree"


@pytest.mark.parametrize("name", ["llamagen-t2i-512", "var-d16@512", "kl16", "code-6-refiner"])
def test_what_was_never_measured_is_refused_with_what_was(name: str) -> None:
    with pytest.raises(UserError, match=f"no published figures of {name}; there are of: var-d16"):
        evaluation(name)
