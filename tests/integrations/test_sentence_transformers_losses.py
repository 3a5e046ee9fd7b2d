"""The losses for sentence-transformers: values and gradients of the stock ones, refusals, duplicates."""

import inspect
import pickle
import subprocess
import sys

import pytest
import torch
from sentence_transformers import util
from torch.nn.functional import cross_entropy, normalize

from conan_fast.integrations.sentence_transformers import CachedInfoNCELoss, CoSENTLoss, InfoNCELoss, stock
from conan_fast.integrations.sentence_transformers.text_ids import text_ids
from tests.integrations.sentence_transformer_models import (
    DIM,
    assert_equal,
    features,
    small_model,
    texts,
    value_and_gradients,
)

ROWS = 10
DIMS, WEIGHTS = [4, DIM, 8], [0.5, 1.0, 2.0]  # in an order of their own
PAIRS = {
    "plain": (InfoNCELoss, stock.MultipleNegativesRankingLoss, {}),
    "cached by texts": (CachedInfoNCELoss, stock.CachedMultipleNegativesRankingLoss, {"mini_batch_size": 4}),
    "cached by tokens": (CachedInfoNCELoss, stock.CachedMultipleNegativesRankingLoss, {"mini_batch_num_tokens": 20}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("bert")).double()


def columns(negatives):
    return [texts(ROWS, seed) for seed in range(2 + negatives)]


def both(model, pair, matryoshka, **options):
    """(ours, the stock loss), built alike."""
    ours, theirs, more = PAIRS[pair]
    if not more.keys() <= inspect.signature(theirs).parameters.keys():
        pytest.skip(f"this version of sentence-transformers has no {list(more)}")
    options |= more
    other = theirs(model, **options)
    if not matryoshka:
        return ours(model, **options), other
    other = stock.MatryoshkaLoss(model, other, DIMS, WEIGHTS)
    return ours(model, **options, matryoshka_dims=DIMS, matryoshka_weights=WEIGHTS), other


@pytest.mark.parametrize("matryoshka", [False, True])
@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("pair", PAIRS)
def test_values_and_gradients_equal_the_stock_loss(model, pair, negatives, matryoshka):
    """With dropout: the cached losses embed twice and must repeat the random state."""
    ours, other = both(model, pair, matryoshka, scale=13.0)
    expected = value_and_gradients(other, columns(negatives))
    assert_equal(value_and_gradients(ours, columns(negatives)), expected)
    with torch.no_grad():
        model.eval()
        batch = features(model, columns(negatives))
        torch.testing.assert_close(ours(batch, None), other(batch, None))


def test_the_stock_matryoshka_loss_around_ours(model):
    for pair in PAIRS:
        ours, other = both(model, pair, False)
        expected = value_and_gradients(stock.MatryoshkaLoss(model, other, DIMS, WEIGHTS), columns(1))
        assert_equal(value_and_gradients(stock.MatryoshkaLoss(model, ours, DIMS, WEIGHTS), columns(1)), expected)


def test_a_scale_that_is_learned(model):
    grads = []
    for kind in PAIRS["plain"][:2]:
        scale = torch.nn.Parameter(torch.tensor(13.0, dtype=torch.float64))
        value_and_gradients(kind(model, scale=scale), columns(1))
        grads.append(scale.grad)
    torch.testing.assert_close(*grads)


def test_matryoshka_weights_are_1_by_default(model):
    ours = InfoNCELoss(model, matryoshka_dims=DIMS)
    other = stock.MatryoshkaLoss(model, stock.MultipleNegativesRankingLoss(model), DIMS)
    assert_equal(value_and_gradients(ours, columns(0)), value_and_gradients(other, columns(0)))


LABELS = {
    "ties": [0.0, 1.0, 0.5, 0.5, 0.2, 1.0, 0.0, 0.3, 0.9, 0.5],
    "integers": [2, 0, 1, 1, 3, 0, 2, 2, 1, 0],
    "all equal": [0.5] * ROWS,
    "bools": [True, False] * 5,
}


@pytest.mark.parametrize("matryoshka", [False, True])
@pytest.mark.parametrize("labels", LABELS)
def test_cosent_equals_the_stock_loss(model, labels, matryoshka):
    other = stock.CoSENTLoss(model, scale=13.0)
    ours = CoSENTLoss(model, scale=13.0)
    if matryoshka:
        other = stock.MatryoshkaLoss(model, other, DIMS, WEIGHTS)
        ours = CoSENTLoss(model, scale=13.0, matryoshka_dims=DIMS, matryoshka_weights=WEIGHTS)
    values = torch.tensor(LABELS[labels])
    mine = value_and_gradients(ours, columns(0), values)
    if labels == "all equal":  # no pair is ranked
        assert mine[0] == 0 and not any(grad.any() for grad in mine[1].values())
    else:
        assert_equal(mine, value_and_gradients(other, columns(0), values))


def test_default_arguments_are_those_of_the_stock_losses(model):
    for ours, theirs in ((CoSENTLoss, stock.CoSENTLoss), *(pair[:2] for pair in PAIRS.values())):
        mine, other = ours(model).get_config_dict(), theirs(model).get_config_dict()
        added = {"matryoshka_dims": None, "matryoshka_weights": None}
        assert mine == {**other, **added, **({} if ours is CoSENTLoss else {"mask_duplicates": False})}
        assert ours(model, 7.0).get_config_dict()["scale"] == 7.0  # the second positional argument


INFO_NCE = {
    "directions": {"directions": ("query_to_doc", "doc_to_query")},
    "hardness_mode": {"hardness_mode": "hard_negatives", "hardness_strength": 5.0},
    "hardness_strength": {"hardness_strength": 5.0},
    "similarity_fct=dot_score": {"similarity_fct": util.dot_score},
    "scale must be positive and finite, got -1": {"scale": -1.0},
    "scale must be positive and finite, got inf": {"scale": float("inf")},
    "matryoshka_weights need matryoshka_dims": {"matryoshka_weights": [1.0]},
    "must not repeat": {"matryoshka_dims": [8, 8]},
    "cannot exceed the model's embedding dimension of 16": {"matryoshka_dims": [32]},
    "must be the same length": {"matryoshka_dims": [8, 16], "matryoshka_weights": [1.0]},
}


@pytest.mark.parametrize("message", INFO_NCE)
@pytest.mark.parametrize("kind", [InfoNCELoss, CachedInfoNCELoss])
def test_what_info_nce_cannot_do_is_refused_by_name(model, kind, message):
    wrong = INFO_NCE[message]
    known = {*inspect.signature(kind.stock_loss).parameters, "matryoshka_dims", "matryoshka_weights"}
    if not wrong.keys() <= known:
        pytest.skip(f"this version of sentence-transformers has no {message}")
    with pytest.raises(ValueError, match="(?i)scale must be a positive value|" + message):
        kind(model, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"similarity_fct": util.pairwise_dot_score}, "similarity_fct=pairwise_dot_score"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"matryoshka_dims": [0, 8]}, "must be > 0"),
    ],
)
def test_what_cosent_cannot_do_is_refused_by_name(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        CoSENTLoss(model, **wrong)


def test_an_argument_of_a_later_version_is_refused_unless_it_has_its_default(model, monkeypatch):
    class Later(stock.MultipleNegativesRankingLoss):
        def __init__(self, model, scale=20.0, margin=0.0):
            super().__init__(model, scale)
            self.margin = margin

    ours = type("Ours", (InfoNCELoss, Later), {"stock_loss": Later})
    ours(model)
    with pytest.raises(ValueError, match=r"Ours does not support margin=0\.3, expected 0\.0"):
        ours(model, margin=0.3)


def test_a_change_after_construction_is_refused_at_the_next_batch(model):
    for kind in (InfoNCELoss, CachedInfoNCELoss):
        loss = kind(model)
        loss.similarity_fct = util.dot_score
        with pytest.raises(ValueError, match="similarity_fct=dot_score"):
            loss(features(model, columns(0)), None)
    loss = CoSENTLoss(model)
    loss.scale = -2
    with pytest.raises(ValueError, match="scale must be positive"):
        loss(features(model, columns(0)), torch.arange(ROWS))


def test_numbers_of_columns(model):
    with pytest.raises(ValueError, match="at least two columns"):
        InfoNCELoss(model)(features(model, columns(0)[:1]), None)
    with pytest.raises(ValueError, match="two columns of texts and a label, got 3"):
        CoSENTLoss(model)(features(model, columns(1)), torch.arange(ROWS))


def masked_loss(model, batch):
    """The definition: cross-entropy over candidates, from which copies of the own positive's text are taken."""
    embedded = [normalize(model.encode(column, convert_to_tensor=True), dim=1) for column in batch]
    scores = 20 * embedded[0] @ torch.cat(embedded[1:]).T
    documents = [text for column in batch[1:] for text in column]
    for i, own in enumerate(batch[1]):
        for j, text in enumerate(documents):
            if text == own and j != i:
                scores[i, j] = -torch.inf
    return cross_entropy(scores, torch.arange(len(scores)))


@pytest.mark.parametrize("kind", [InfoNCELoss, CachedInfoNCELoss])
def test_duplicates_of_the_own_positive_are_masked_on_request(model, kind):
    batch = columns(2)
    batch[1][3] = batch[1][7]  # two anchors with one positive
    batch[2][5] = batch[3][0] = batch[1][2]  # a positive among the hard negatives of others
    batch[3][8] = batch[1][8]  # ... of its own
    batch[1][4] = batch[1][9] + " w0"  # a longer text is no duplicate
    model.eval()
    with torch.no_grad():
        masked = kind(model, mask_duplicates=True)(features(model, batch), None)
        torch.testing.assert_close(masked, masked_loss(model, batch))
        stock_value = kind.stock_loss(model)(features(model, batch), None)
        torch.testing.assert_close(kind(model)(features(model, batch), None), stock_value)
        assert (masked - stock_value).abs() > 1e-3


def test_masking_needs_texts(model):
    loss = InfoNCELoss(model, mask_duplicates=True)
    with pytest.raises(ValueError, match="needs the texts"):
        loss.compute_loss_from_embeddings([torch.randn(3, 4)] * 2, None)
    column = {"pixel_values": torch.zeros(2, 3, 4, 4), "input_ids": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match="texts only, got a column with"):
        loss([column] * 2, None)


def test_text_ids_depend_on_tokens_and_their_places_alone():
    rows = [[5], [5, 5], [5, 0], [0], [0, 5], [7, 5, 9], [9, 5, 7], [2**40, 1], [5], [7, 5, 9]]
    width = max(map(len, rows)) + 2
    right, left = torch.full((2, len(rows), width), 3)
    masks = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        right[i, : len(row)] = left[i, width - len(row) :] = torch.tensor(row)
        masks[0, i, : len(row)] = masks[1, i, width - len(row) :] = 1
    ids = text_ids({"input_ids": right, "attention_mask": masks[0]})
    assert ids.dtype == torch.int64
    assert torch.equal(ids[8:], ids[[0, 5]]) and len(ids.unique()) == len(rows) - 2
    assert torch.equal(ids, text_ids({"input_ids": left, "attention_mask": masks[1], "modality": "text"}))
    ends = torch.tensor([0, *map(len, rows)]).cumsum(0)
    flat = torch.tensor([token for row in rows for token in row])
    assert torch.equal(ids, text_ids({"input_ids": flat[None], "cu_seq_lens_q": ends.int()}))
    assert torch.equal(ids, text_ids({"input_ids": flat, "offsets": ends[:-1]}))


def test_text_ids_of_many_texts_differ():
    tokens = torch.cartesian_prod(torch.arange(60), torch.arange(60), torch.arange(60))
    ids = text_ids({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    assert len(ids.unique()) == 60**3


def test_losses_are_pickled(model):
    for kind in (InfoNCELoss, CachedInfoNCELoss, CoSENTLoss):
        loss = kind(model, scale=13.0, matryoshka_dims=DIMS)
        copy = pickle.loads(pickle.dumps(loss))
        labels = torch.arange(ROWS)
        assert_equal(value_and_gradients(copy, columns(0), labels), value_and_gradients(loss, columns(0), labels))
        other = stock.CoSENTLoss(model) if kind is CoSENTLoss else kind.stock_loss(model)
        assert loss.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("package", ["transformers", "sentence-transformers"])
def test_without_the_library_the_error_names_the_extra(package: str):
    name = package.replace("-", "_")
    code = (
        "import importlib.metadata as m\nversion = m.version\n"
        "def missing(package):\n"
        f"    if package == {package!r}:\n        raise m.PackageNotFoundError(package)\n    return version(package)\n"
        "m.version = missing\n"
        "from conan_fast.integrations.sentence_transformers import write_module_files\n"
        f"from conan_fast.integrations.{name} import {'register' if name == 'transformers' else 'InfoNCELoss'}"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"ImportError: {package} is not installed" in result.stderr
    assert f'pip install "conan-fast[{package}]"' in result.stderr
