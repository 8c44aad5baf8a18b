"""Convolutions, then linear layers: the architectures ``default``, ``fast`` and ``light``.

Letters: N rows, C channels, K places of the sparse token box, O output channels, Q positions of the first
kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.derived import Derived
from metta_ray.agent.networks.conv_table import ConvGeometry, ConvTable
from metta_ray.agent.networks.fused_relu import conv2d_relu
from metta_ray.agent.networks.layers import ACTIVATIONS, HIDDEN_GAIN, initialise, is_plain, linear_stack
from metta_ray.agent.networks.registry import register_network
from metta_ray.agent.precision import compute_dtype
from metta_ray.agent.token_encoder import SparseBox, TokenEncoder, bag
from metta_ray.common.errors import ConfigError
from metta_ray.envs.env_spec import EnvSpec

# Up to this many kernel positions the first convolution is faster as a sum of weight rows over filled tokens:
# its table has Q · O columns, of which a token needs at most ⌈kernel / stride⌉² · O.
MAX_GATHER_POSITIONS = 16


def build_cnn(spec: EnvSpec, config: AgentConfig) -> nn.Module:
    if not config.conv_channels:
        raise ConfigError(f"conv_channels=() leaves {config.architecture!r} without a convolution; use 'mlp'")
    if spec.vocabulary is not None:
        return TokenCnn(spec, config)
    if len(spec.obs_shape) == 3:
        return ImageCnn(spec, config)
    raise ConfigError(
        f"architecture={config.architecture!r} needs tokens or an image, but {spec.name} observes "
        f"{spec.observation_space}; use architecture='mlp'"
    )


for _name in ("default", "fast", "light"):
    register_network(_name)(build_cnn)


def padding_to_fit(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Zeros before and after an axis so that kernels cover all of it: at least ``padding`` on both sides."""
    room = size + 2 * padding - kernel
    missing = -room if room < 0 else -room % stride
    return padding + missing // 2, padding + missing - missing // 2


def kernel_positions(height: int, width: int, config: AgentConfig) -> int:
    """Places of the first kernel over a window of so many cells."""

    def along(size: int) -> int:
        kernel, stride = config.conv_kernels[0], config.conv_strides[0]
        return (size + sum(padding_to_fit(size, kernel, stride, config.conv_paddings[0])) - kernel) // stride + 1

    return along(height) * along(width)


class ConvStack(nn.Module):
    """Convolutions with activations, flattened, then linear layers: ``(N, C, height, width)`` → ``(N,
    size)``.
    """

    def __init__(self, channels: int, height: int, width: int, config: AgentConfig) -> None:
        super().__init__()
        orthogonal = config.initialisation == "orthogonal"
        self.convs = nn.ModuleList()
        self.paddings: list[list[int]] = []
        self.sizes = [(height, width)]
        shapes = zip(config.conv_channels, config.conv_kernels, config.conv_strides, config.conv_paddings, strict=True)
        for outputs, kernel, stride, padding in shapes:
            conv = nn.Conv2d(channels, outputs, kernel, stride)
            if orthogonal:
                initialise(conv, HIDDEN_GAIN)
            top, bottom = padding_to_fit(height, kernel, stride, padding)
            left, right = padding_to_fit(width, kernel, stride, padding)
            self.convs.append(conv)
            self.paddings.append([left, right, top, bottom])
            channels = outputs
            height = (height + top + bottom - kernel) // stride + 1
            width = (width + left + right - kernel) // stride + 1
            self.sizes.append((height, width))
        self.activation = ACTIVATIONS[config.activation]()
        self.flat_size = channels * height * width
        self.linear = linear_stack(self.flat_size, config.hidden_sizes, config.activation, orthogonal=orthogonal)
        self.feature_size = config.hidden_sizes[-1] if config.hidden_sizes else self.flat_size

    def forward(self, image: Tensor) -> Tensor:
        return self.after_first(self.convolved(0, image))

    def after_first(self, image: Tensor) -> Tensor:
        """The rest, from the first convolution's output."""
        for layer in range(1, len(self.convs)):
            image = self.convolved(layer, image)
        # Flattened channels last, which is how the box and every map lie in memory: a view, not a copy.
        features: Tensor = self.linear(image.permute(0, 2, 3, 1).flatten(1))
        return features

    def convolved(self, layer: int, image: Tensor) -> Tensor:
        """A convolution's output, with the activation after it."""
        conv, padding = self.convs[layer], self.paddings[layer]
        activated: Tensor
        if not is_plain(conv, nn.Conv2d) or conv.bias is None:
            activated = self.activation(conv(F.pad(image, padding)))
            return activated
        left, right, top, bottom = padding
        if (left, top) != (right, bottom):
            image, left, top = F.pad(image, padding), 0, 0
        if is_plain(self.activation, nn.ReLU):
            return conv2d_relu(image, conv.weight, conv.bias, conv.stride, (top, left))
        activated = self.activation(F.conv2d(image, conv.weight, conv.bias, conv.stride, (top, left)))
        return activated


class ImageCnn(nn.Module):
    """Images ``(height, width, C)`` or ``(C, height, width)``, told apart by the shorter axis; bytes become
    [0, 1].
    """

    def __init__(self, spec: EnvSpec, config: AgentConfig) -> None:
        super().__init__()
        shape = spec.obs_shape
        self.is_channels_last = shape[2] < shape[0]
        height, width, channels = shape if self.is_channels_last else (*shape[1:], shape[0])
        self.scale = 1 / 255 if spec.obs_dtype.kind in "ui" else 1.0
        self.stack = ConvStack(channels, height, width, config)
        self.feature_size = self.stack.feature_size

    def forward(self, obs: Tensor) -> Tensor:
        image = obs.permute(0, 3, 1, 2) if self.is_channels_last else obs
        features: Tensor = self.stack(image.float() * self.scale)
        return features


class TokenCnn(nn.Module):
    """Tokens → box → convolutions and linear layers; the globals join at the end."""

    def __init__(self, spec: EnvSpec, config: AgentConfig) -> None:
        super().__init__()
        self.tokens = TokenEncoder(spec, last_action_token=config.last_action_token)
        self.stack = ConvStack(self.tokens.num_channels, self.tokens.height, self.tokens.width, config)
        self.feature_size = self.stack.feature_size + self.tokens.num_scalars
        rows, columns = self.stack.sizes[1]
        left, _, top, _ = self.stack.paddings[0]
        self.geometry = ConvGeometry(
            self.tokens.height,
            self.tokens.width,
            top,
            left,
            rows,
            columns,
            config.conv_kernels[0],
            config.conv_strides[0],
        )
        can_gather = rows * columns <= MAX_GATHER_POSITIONS
        self._table = ConvTable(self.geometry)
        self._acting_table = Derived(ConvTable(self.geometry))
        self.gathers = can_gather if config.gather_conv is None else config.gather_conv

    def forward(self, obs: Tensor) -> Tensor:
        box = self.tokens(obs)
        first = self.gathered_first(box) if self.gathers else self.dense_first(box)
        features: Tensor = self.stack.after_first(first)
        return torch.cat([features, box.scalars.to(features.dtype)], dim=1)

    def dense_first(self, box: SparseBox) -> Tensor:
        return self.stack.convolved(0, self.tokens.dense_box(box, compute_dtype(box.value)))

    def gathered_first(self, box: SparseBox) -> Tensor:
        """The same numbers without a dense box: ``(N, O, rows, columns)``."""
        conv = self.stack.convs[0]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        rows, columns = self.stack.sizes[1]
        dtype = compute_dtype(conv.weight)
        if torch.is_grad_enabled():
            flat = self._table.convolved(conv.weight, box, dtype)
        else:
            flat = bag(self._acting_table(conv.weight, dtype=dtype), box)
        image = flat.view(-1, rows, columns, conv.out_channels)
        image += conv.bias.to(flat.dtype)
        activated: Tensor = self.stack.activation(image)
        return activated.permute(0, 3, 1, 2)
