"""The floor of the policy: plain torch for the two networks, in every formulation that is worth trying.

Imports nothing of this package. Only what any policy must do: tokens to a box, convolutions, one linear layer, LSTM,
two heads. No episode ends, no side inputs, no checks.

Letters: N rows, W tokens, C channels, P cells, K = P · C places, O outputs, B segments, T steps, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PADDING = 0xFF


class TokenTables(NamedTuple):
    """What token bytes mean. channel int32, value float32: ``(65536,)``, indexed by feature · 256 + number.

    A location byte is row << 4 | column of a window of height × width cells; others lie outside.
    """

    channel: Tensor
    value: Tensor
    channels: int
    height: int
    width: int

    def to(self, device: torch.device) -> TokenTables:
        return self._replace(channel=self.channel.to(device), value=self.value.to(device))


@dataclass(frozen=True)
class NetworkShape:
    """channels, kernels, strides, paddings of the convolutions; widths of the linear layer and the LSTM."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    linear: int
    lstm: int
    actions: int = 5


SHAPES = {
    "default": NetworkShape((32, 64), (3, 3), (1, 1), (1, 1), 512, 512),
    "light": NetworkShape((32,), (5,), (3,), (0,), 128, 128),
}


@dataclass(frozen=True)
class Formulation:
    """How the same numbers are computed.

    tokens: ``all`` of them in plain arithmetic, ``filled`` ones through look-up tables, or through tables all that
    are ``given`` (whoever gives them has cut them; a card need not wait for an answer). first: the first convolution
    over a ``dense`` box, as an embedding ``bag`` of weight columns, or as a bag whose backward sorts (``sorted``).
    wide: maps lie in memory channels last. dtype: of everything before the heads.
    """

    name: str
    tokens: Literal["all", "filled", "given"] = "filled"
    first: Literal["dense", "bag", "sorted"] = "dense"
    wide: bool = True
    dtype: torch.dtype = torch.float32

    def in_bf16(self) -> Formulation:
        return replace(self, name=f"{self.name}, bf16", dtype=torch.bfloat16)


PLAIN = Formulation("plain", tokens="all", wide=False)
FORMULATIONS = {
    "default": (PLAIN, Formulation("look-up", wide=False), Formulation("look-up, channels last")),
    "light": (
        PLAIN,
        Formulation("look-up"),
        Formulation("bag", first="bag"),
        Formulation("bag, sorted", first="sorted"),
    ),
}


def formulations(network: str, *, bf16: bool) -> tuple[Formulation, ...]:
    """All of a network's; with ``bf16`` those but the plain one in that precision too."""
    ways = FORMULATIONS[network]
    return ways + tuple(way.in_bf16() for way in ways[1:]) if bf16 else ways


class FloorNetwork(nn.Module):
    """Logits and values of token observations."""

    channel: Tensor
    value: Tensor
    cell: Tensor
    inside: Tensor

    def __init__(self, shape: NetworkShape, tables: TokenTables, way: Formulation) -> None:
        super().__init__()
        self.shape, self.way = shape, way
        self.height, self.width, self.num_channels = tables.height, tables.width, tables.channels
        self.places = tables.height * tables.width * tables.channels
        self.register_buffer("channel", tables.channel.int())
        self.register_buffer("value", tables.value.float())
        cell, inside = torch.zeros(256, dtype=torch.int32), torch.zeros(256)
        for row in range(tables.height):
            for column in range(tables.width):
                cell[row << 4 | column] = (row * tables.width + column) * tables.channels
                inside[row << 4 | column] = 1.0
        self.register_buffer("cell", cell)
        self.register_buffer("inside", inside)

        self.convs = nn.ModuleList()
        self.sizes: list[tuple[int, int]] = []
        inputs, size = tables.channels, (tables.height, tables.width)
        for outputs, kernel, stride, padding in zip(
            shape.channels, shape.kernels, shape.strides, shape.paddings, strict=True
        ):
            self.convs.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
            inputs, size = (
                outputs,
                (
                    (size[0] + 2 * padding - kernel) // stride + 1,
                    (size[1] + 2 * padding - kernel) // stride + 1,
                ),
            )
            self.sizes.append(size)
        self.linear = nn.Linear(inputs * size[0] * size[1], shape.linear)
        self.lstm = nn.LSTM(shape.linear, shape.lstm)
        self.actor, self.critic = nn.Linear(shape.lstm, shape.actions), nn.Linear(shape.lstm, 1)
        if way.wide:
            self.convs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._table: Tensor | None = None

    def forward(self, obs: Tensor, steps: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """obs ``(B·T, W, 3)`` uint8, row b·T + t; h, c ``(1, B, H)``. Logits ``(B·T, A)`` and values ``(B·T,)`` in
        float32, and the state after the last step."""
        features = self.features(obs)
        x_TBF = features.view(-1, steps, features.shape[1]).transpose(0, 1)
        y_TBH, (h, c) = self.lstm(x_TBF, (h.to(x_TBF.dtype), c.to(x_TBF.dtype)))
        core = y_TBH.transpose(0, 1).reshape(len(obs), -1).float()
        with torch.autocast(obs.device.type, enabled=False):
            return self.actor(core), self.critic(core).squeeze(1), h, c

    def features(self, obs: Tensor) -> Tensor:
        if self.way.tokens == "all":
            image = self.convs[0](self._plain_box(obs))
        elif self.way.first == "dense":
            image = self.convs[0](self._box(*self._looked_up(obs)))
        else:
            image = self._gathered(*self._looked_up(obs))
        image = F.relu_(image)
        for conv in list(self.convs)[1:]:
            image = F.relu_(conv(image))
        flat = image.permute(0, 2, 3, 1).flatten(1) if self.way.wide else image.flatten(1)
        return F.relu_(self.linear(flat))

    def hold(self, dtype: torch.dtype) -> None:
        """For inference alone: keeps everything but the heads in this type, and the table of weight columns."""
        for part in (self.convs, self.linear, self.lstm):
            part.to(dtype)
        if self.way.first != "dense":
            self._table = self._weight_columns().detach()

    def load_from(self, other: FloorNetwork) -> None:
        """The same weights, whichever order the maps of both are flattened in."""
        weights = other.state_dict()
        if self.way.wide != other.way.wide:
            rows, columns = self.sizes[-1]
            outputs = self.shape.channels[-1]
            weight = weights["linear.weight"]
            if self.way.wide:
                weight = weight.view(-1, outputs, rows * columns).transpose(1, 2)
            else:
                weight = weight.view(-1, rows * columns, outputs).transpose(1, 2)
            weights["linear.weight"] = weight.reshape(len(weight), -1)
        self.load_state_dict(weights)

    # -- Tokens ---------------------------------------------------------------------------------------------

    def _plain_box(self, obs: Tensor) -> Tensor:
        location, feature, number = obs.long().unbind(-1)
        row, column = location >> 4, location & 15
        is_inside = (row < self.height) & (column < self.width)
        pair = feature * 256 + number
        place = (row * self.width + column) * self.num_channels + self.channel[pair]
        value = torch.where(is_inside, self.value[pair], 0.0)
        box = torch.zeros(len(obs), self.places, device=obs.device)
        box.scatter_add_(1, torch.where(is_inside, place, 0), value)
        image = box.view(len(obs), self.height, self.width, self.num_channels).permute(0, 3, 1, 2)
        return image.to(self._compute_dtype(), memory_format=torch.contiguous_format)

    def _looked_up(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(place int32, value): ``(N, W)``."""
        used = filled_tokens(obs) if self.way.tokens == "filled" else obs.shape[1]
        location, feature, number = obs[:, :used].permute(2, 0, 1).int()
        shape, location, pair = location.shape, location.reshape(-1), (feature * 256 + number).reshape(-1)
        place = self.cell.index_select(0, location) + self.channel.index_select(0, pair)
        value = self.inside.index_select(0, location) * self.value.index_select(0, pair)
        return place.view(shape), value.view(shape)

    def _box(self, place: Tensor, value: Tensor) -> Tensor:
        dtype = self._compute_dtype()
        box = torch.zeros(len(place), self.places, dtype=dtype, device=place.device)
        box.scatter_add_(1, place.long(), value.to(dtype))
        image = box.view(len(place), self.height, self.width, self.num_channels).permute(0, 3, 1, 2)
        return image if self.way.wide else image.contiguous()

    def _gathered(self, place: Tensor, value: Tensor) -> Tensor:
        """The first convolution from weight columns of the filled places: ``(N, O, rows, columns)``."""
        conv = self.convs[0]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        table = (self._weight_columns() if self._table is None else self._table).to(self._compute_dtype())
        if self.way.first == "sorted":
            flat: Tensor = _SortedBag.apply(table, place, value)  # type: ignore[no-untyped-call]
        else:
            flat = F.embedding_bag(place, table, per_sample_weights=value.to(table.dtype), mode="sum")
        image = flat.view(-1, *self.sizes[0], conv.out_channels) + conv.bias.to(flat.dtype)
        return image.permute(0, 3, 1, 2)

    def _weight_columns(self) -> Tensor:
        conv = self.convs[0]
        assert isinstance(conv, nn.Conv2d)
        size = (self.height, self.width)
        columns: Tensor = _WeightColumns.apply(conv.weight, size, self.sizes[0], conv.stride[0])  # type: ignore[no-untyped-call]
        return columns

    def _compute_dtype(self) -> torch.dtype:
        device = self.cell.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.linear.weight.dtype


class _WeightColumns(torch.autograd.Function):
    """From a kernel ``(O, C, k, k)`` without padding to ``(K, rows · columns · O)``: what a 1 at a place adds."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, size: tuple[int, int], out: tuple[int, int], stride: int) -> Tensor:
        outputs, channels, kernel, _ = weight.shape
        ctx.kernel, ctx.stride = kernel, stride
        ctx.table_shape = (*size, channels, *out, outputs)
        table = weight.new_zeros(ctx.table_shape)
        for (row, y), (column, x) in _windows(out, kernel, stride):
            table[y, x, :, row, column] = weight.permute(2, 3, 1, 0)
        return table.view(size[0] * size[1] * channels, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        table = gradient.view(ctx.table_shape)
        windows = _windows(ctx.table_shape[3:5], ctx.kernel, ctx.stride)
        kernel = torch.stack([table[y, x, :, row, column] for (row, y), (column, x) in windows]).sum(0)
        return kernel.permute(3, 2, 0, 1), None, None, None


def _windows(out: tuple[int, int], kernel: int, stride: int) -> list[tuple[tuple[int, slice], tuple[int, slice]]]:
    rows, columns = ([(i, slice(i * stride, i * stride + kernel)) for i in range(count)] for count in out)
    return [(row, column) for row in rows for column in columns]


class _SortedBag(torch.autograd.Function):
    """An embedding bag whose gradient is an embedding bag too, over the entries sorted by table row."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, place: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(place, value)
        ctx.places = len(table)
        return F.embedding_bag(place, table, per_sample_weights=value.to(table.dtype), mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        place, value = ctx.saved_tensors
        ordered, entry = place.flatten().to(torch.int16).sort()
        starts = torch.searchsorted(ordered, torch.arange(ctx.places, dtype=torch.int16, device=place.device))
        weights = value.flatten().index_select(0, entry).to(gradient.dtype)
        rows = entry // place.shape[1]
        summed = F.embedding_bag(rows, gradient.contiguous(), starts, per_sample_weights=weights, mode="sum")
        return summed, None, None


def filled_tokens(obs: Tensor) -> int:
    """Tokens are packed to the front of ``(N, W, 3)``: where the longest list ends, at least 1."""
    low, high = 1, obs.shape[1]
    while low < high:
        middle = (low + high) // 2
        if bool((obs[:, middle, 0] != PADDING).any()):
            low = middle + 1
        else:
            high = middle
    return low


def multiply_adds(network: FloorNetwork) -> int:
    """Of one forward pass of one row, with a dense box."""
    total, inputs = 0, network.num_channels
    for (rows, columns), outputs, kernel in zip(
        network.sizes, network.shape.channels, network.shape.kernels, strict=True
    ):
        total += rows * columns * outputs * inputs * kernel**2
        inputs = outputs
    lstm = network.shape.lstm
    heads = lstm * (network.shape.actions + 1)
    return total + network.linear.weight.numel() + 4 * lstm * (network.shape.linear + lstm) + heads


def activations(network: FloorNetwork) -> int:
    """Numbers that the layers put out for one row: maps, linear layer, gates and state of the LSTM."""
    sizes = zip(network.sizes, network.shape.channels, strict=True)
    maps = sum(rows * columns * outputs for (rows, columns), outputs in sizes)
    return maps + network.shape.linear + 6 * network.shape.lstm
