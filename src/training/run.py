"""The state of one training run in one process, and the model that its settings describe."""

from src.models.gpt import GPT
from src.settings.read import Settings


def build_gpt(settings: Settings) -> GPT:
    """Build the configured model with its initial weights."""
    return GPT(
        settings.model,
        residual=settings.residual,
        norm=settings.norm,
        embedding=settings.embedding,
        recurrence=settings.recurrence,
        seed=settings.seed,
    )
