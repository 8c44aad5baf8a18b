"""The sparse box, and the two ways to put a network's first layer on it."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.networks.cnn import padding_to_fit
from metta_ray.agent.networks.registry import build_network
from metta_ray.agent.token_encoder import SparseBox, TokenEncoder, sum_of_rows, used_tokens
from metta_ray.envs.env_spec import EnvSpec, Feature, TokenVocabulary

NAMES = ("agent:group", "episode_completion_pct", "last_action", "vibe", "tag", "inv:ore", "inv:ore:p1", "agent_id")
SPEC = EnvSpec(
    "toy",
    spaces.Box(0, 255, (6, 3), np.uint8),
    spaces.Discrete(2),
    vocabulary=TokenVocabulary({name: Feature(i, 1.0) for i, name in enumerate(NAMES)}, ("type:wall",), 5, 5),
    action_names=("noop", "go"),
)


def tokens(*rows: list[tuple[int, int, int]], width: int = 6) -> torch.Tensor:
    padded = [[*row, *[(255, 255, 255)] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.uint8)


def test_tokens_land_in_their_cell_and_channel(token_spec):
    encoder = TokenEncoder(token_spec())
    box = encoder(tokens([(254, 1, 51), (0x12, 9, 1), (0x40, 5, 1)], []))
    dense = encoder.dense_box(box)

    assert dense.shape == (2, encoder.num_channels, 5, 5)
    assert dense[0, encoder.channels.index("inv:heart"), 1, 2] == 1.0
    assert dense[0, encoder.channels.index("tag:type:wall"), 4, 0] == 1.0
    assert dense.sum() == 2.0
    assert box.scalars[0, encoder.scalars.index("episode_completion_pct")] == pytest.approx(0.2)
    assert box.scalars[1].sum() == 0


def test_entries_for_one_place_add_up(token_spec):
    encoder = TokenEncoder(token_spec())
    # Bytes 16 and 2 of one amount, 528 ores, in one cell.
    dense = encoder.dense_box(encoder(tokens([(0x22, 7, 16), (0x22, 8, 2)])))

    assert dense[0, encoder.channels.index("inv:ore"), 2, 2] == pytest.approx(1.5 + 1.125)


def test_cells_outside_the_window_are_ignored(token_spec):
    encoder = TokenEncoder(token_spec())
    assert encoder.dense_box(encoder(tokens([(0x55, 9, 1), (0x05, 9, 1)]))).sum() == 0


@pytest.mark.parametrize("longest", [0, 1, 5, 39, 40])
def test_padding_is_trimmed_to_the_longest_row(longest):
    obs = torch.full((3, 40, 3), 255, dtype=torch.uint8)
    obs[1, :longest] = 7
    assert used_tokens(obs) == max(1, longest)


@pytest.mark.parametrize("architecture", ["light", "fast", "mlp"])
@pytest.mark.parametrize("window", [5, 13])
def test_gathered_first_layer_equals_dense_one_with_its_gradient(token_spec, some_tokens, architecture, window):
    spec = token_spec(window=window)
    obs = some_tokens(spec, 20)
    results = []
    for gather in (True, False):
        torch.manual_seed(0)
        network = build_network(spec, AgentConfig(architecture=architecture, hidden_sizes=(24,), gather_conv=gather))
        features = network(obs)
        features.square().sum().backward()
        results.append([features, *(parameter.grad for parameter in network.parameters())])

    for gathered, dense in zip(*results, strict=True):
        torch.testing.assert_close(gathered, dense, atol=1e-5, rtol=1e-5)


def test_sum_of_rows_is_a_matrix_product_with_its_gradient():
    torch.manual_seed(0)
    table = torch.randn(7, 3, requires_grad=True)
    # Row 0 has three entries, row 1 none, row 2 one.
    box = SparseBox(
        place=torch.tensor([0, 6, 6, 2], dtype=torch.int32),
        value=torch.tensor([1.0, 2.0, 0.5, 3.0]),
        row=torch.tensor([0, 0, 0, 2]),
        start=torch.tensor([0, 3, 3]),
        scalars=torch.zeros(3, 0),
    )
    matrix = torch.zeros(3, 7)
    matrix[0, 0], matrix[0, 6], matrix[2, 2] = 1.0, 2.5, 3.0
    gradient = torch.randn(3, 3)

    summed = sum_of_rows(table, box)
    summed.backward(gradient)

    torch.testing.assert_close(summed, matrix @ table)
    torch.testing.assert_close(table.grad, matrix.T @ gradient)


def test_padding_lets_kernels_cover_every_cell():
    assert padding_to_fit(11, kernel=5, stride=3, padding=0) == (0, 0)
    assert padding_to_fit(13, kernel=5, stride=3, padding=0) == (0, 1)
    assert padding_to_fit(3, kernel=5, stride=3, padding=0) == (1, 1)
    assert padding_to_fit(11, kernel=3, stride=1, padding=1) == (1, 1)


@settings(max_examples=50, deadline=None)
@given(
    lists=st.lists(
        st.lists(
            st.tuples(st.sampled_from([254, 0x00, 0x22, 0x44, 0x50, 0x9F]), st.integers(0, 12), st.integers(0, 255)),
            max_size=6,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_look_up_on_the_host_is_that_of_a_device(lists):
    """Globals anywhere in a list, several for one place, unknown features, cells outside, empty lists."""
    encoder = TokenEncoder(SPEC)
    obs = tokens(*lists)

    for on_host, on_device in zip(encoder(obs), encoder.on_device(obs[:, : used_tokens(obs)]), strict=True):
        assert on_host.dtype == on_device.dtype
        torch.testing.assert_close(on_host, on_device)
