"""The tied head is the token table; the untied one (`untied.py`) is a table of its own."""

from tests.support import tiny_gpt


def test_the_tied_head_is_the_token_table_and_the_untied_one_is_not() -> None:
    tied, untied = (tiny_gpt(embedding=name) for name in ("tied", "untied"))
    assert tied.embedding.get_lm_head_weight() is tied.embedding.wte.weight
    assert untied.n_params(positions=True) - tied.n_params(positions=True) == 64 * 16
