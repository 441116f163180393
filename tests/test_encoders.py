"""A text encoder as a backbone: the same vectors as its library's, frozen and fine-tuned as image networks are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tljupyter.backbones.encoders import load_encoder, open_encoder
from tljupyter.domains.texts import texts_at_hand
from tljupyter.features.texts import SentenceEncoder
from tljupyter.freezing import FreezePlan
from tljupyter.refusals import MismatchedWeights, Refusal
from tljupyter.training import TrainingSpec
from tljupyter.transfer.finetuning import FineTuned
from tljupyter.transfer.probe import LinearProbe, stage_features

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "book", "pan", "film", "the", "a", "was", "is"]


def written(folder: Path, model) -> Path:
    "A folder as a hub hands it out, with a tokenizer of whole words."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    return written(tmp_path_factory.mktemp("encoder"), transformers.BertModel(config))


@pytest.fixture(scope="module")
def reviews():
    "Good and bad things said of books and pans."
    said = [
        f"{the} {thing} was {word}"
        for word in WORDS[:6]
        for thing in ("book", "pan", "film")
        for the in ("the", "a")
    ]
    return texts_at_hand(said, [("good" if text.split()[-1] in WORDS[:3] else "bad") for text in said])


def test_the_stages_give_what_the_library_gives(folder, reviews):
    backbone = load_encoder(folder, most_tokens=12)
    assert backbone.stage_names == ("embeddings", "layer1", "layer2", "layer3", "mean")
    assert backbone.shapes[-1] == (16,) and backbone.shapes[1] == (12, 17)
    ours = stage_features(backbone, reviews.items)
    theirs = SentenceEncoder(folder, most_tokens=12).fit(reviews).transform(reviews)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    longer = stage_features(load_encoder(folder, most_tokens=24), reviews.items)
    np.testing.assert_allclose(ours, longer, atol=1e-5)  # padding is seen by nobody
    halfway = stage_features(backbone, reviews.items, "layer2")
    assert halfway.shape == (len(reviews), 16)
    tokenizer, model = open_encoder(folder)
    with torch.no_grad():
        tokens = tokenizer([reviews.items[0]], return_tensors="pt")
        hidden = model(**tokens, output_hidden_states=True).hidden_states[2]
    np.testing.assert_allclose(halfway[0], hidden.mean(1)[0].numpy(), atol=1e-5)


def test_weights_keep_their_names_and_the_shared_model_its_weights(folder, reviews):
    backbone = load_encoder(folder, most_tokens=12)
    own = {name for name, _ in open_encoder(folder)[1].named_parameters() if not name.startswith("pooler")}
    assert {name for name, _ in backbone.module[0].named_parameters()} <= own
    assert {n for n in backbone.state_dict() if not n.endswith(("position_ids", "token_type_ids"))} == own
    before = load_encoder(folder, most_tokens=12).weights_digest
    FineTuned(backbone, FreezePlan.all(backbone), TrainingSpec(epochs=1, learning_rate=1e-2)).fit(reviews)
    assert backbone.weights_digest == before == load_encoder(folder, most_tokens=12).weights_digest
    twin = backbone.reset(1)
    assert twin.weights_digest == backbone.reset(1).weights_digest != backbone.weights_digest


@pytest.mark.slow
@pytest.mark.parametrize("moves", ["all", "biases", "lora"])
def test_fine_tuning_learns_and_leaves_frozen_stages_alone(folder, reviews, moves):
    backbone = load_encoder(folder, most_tokens=12)
    plan = FreezePlan.last(backbone, 2) if moves == "all" else FreezePlan.all(backbone)
    model = FineTuned(backbone, plan, TrainingSpec(epochs=30, learning_rate=1e-2), moves=moves).fit(reviews)
    assert model.score(reviews, reviews.labels) == 1.0
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]
    if moves == "all":
        assert model.boundary_ == model.history_[0]["boundary"] == 2
    if moves == "lora":
        assert 0 < model.trainable_ < backbone.parameters / 2
        names = set(model.network_.backbone.state_dict())
        assert names == set(backbone.state_dict())  # merged: an ordinary network again


def test_what_cannot_be_read_is_refused(folder, reviews, tmp_path):
    with pytest.raises(Refusal, match="give 3 to 24"):
        load_encoder(folder, most_tokens=25)
    numbers = texts_at_hand(["a"], ["x"])
    with pytest.raises(Refusal, match="reads texts"):
        load_encoder(folder, most_tokens=8).input(np.zeros(3))
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    other = written(tmp_path / "gpt", transformers.GPT2Model(config))
    with pytest.raises(MismatchedWeights, match="gpt2 model; an encoder of the family of BERT"):
        load_encoder(other, most_tokens=8)
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(MismatchedWeights, match="cannot be loaded"):
        load_encoder(other, most_tokens=8)
    assert LinearProbe(load_encoder(folder, most_tokens=8)).fit(reviews).predict(numbers).shape == (1,)
