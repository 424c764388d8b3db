from datetime import date

from thumbnet.distributed.replicas import ALONE
from thumbnet.training.together import insist_same_command


def test_a_command_may_hold_what_json_cannot_say() -> None:
    """The recipe refuses it, and says so better."""
    insist_same_command(ALONE, {"optimizer.learning_rate": date(2024, 1, 1)})
