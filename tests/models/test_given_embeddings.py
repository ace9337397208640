"""Token embeddings that replace rows of the embedding table."""

import torch


def test_the_tables_own_rows_give_the_plain_encoding(tiny_sd):
    ids = tiny_sd.padded_ids(["a photo of a dog", "snoopy"])
    rows = tiny_sd.token_embeddings(ids)
    assert torch.equal(tiny_sd.encode_embeddings(rows, ids), tiny_sd.encode_ids(ids))


def test_gradients_reach_the_embeddings_and_the_encoder_stays_causal(tiny_sd):
    ids = tiny_sd.padded_ids(["a photo of a dog"])
    rows = tiny_sd.token_embeddings(ids).clone().requires_grad_()
    tiny_sd.encode_embeddings(rows, ids)[0, 2].sum().backward()
    touched = rows.grad[0].abs().sum(-1) > 0
    assert touched[:3].all() and not touched[3:].any()
