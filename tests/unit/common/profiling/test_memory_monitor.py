import numpy as np
import torch

from metta_ray.common.profiling.memory_monitor import MemoryMonitor, size_bytes


class Holder:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


def test_a_tensor_counts_with_its_data():
    assert size_bytes(torch.zeros(1_000_000)) == 4_000_000


def test_shared_storage_counts_once():
    tensor = torch.zeros(1_000_000)
    size = size_bytes(Holder(whole=tensor, view=tensor[10:], row=tensor.view(1000, 1000)[3]))
    assert 4_000_000 <= size < 4_010_000


def test_arrays_and_views_count_once():
    array = np.zeros(1_000_000)
    size = size_bytes([array, array[5:], {"again": array}])
    assert 8_000_000 <= size < 8_010_000


def test_a_module_counts_parameters_and_gradients():
    layer = torch.nn.Linear(1000, 1000, bias=False)
    assert 4_000_000 <= size_bytes(layer) < 4_100_000
    layer(torch.ones(1, 1000)).sum().backward()
    assert 8_000_000 <= size_bytes(layer) < 8_100_000


def test_cycles_end():
    one, other = Holder(), Holder()
    one.other, other.one = other, one  # type: ignore[attr-defined]
    assert size_bytes(one) > 0


def test_the_monitor_names_objects_and_attributes_and_forgets_the_dead():
    monitor = MemoryMonitor()
    experience = Holder(obs=torch.zeros(1000), rewards=torch.zeros(10))
    monitor.add(experience, "experience", track_attributes=True)

    stats = monitor.stats()

    assert stats["experience.obs"] == 4000
    assert stats["experience.rewards"] == 40
    assert stats["experience"] >= 4040
    assert monitor.get("experience") == stats["experience"]
    del experience
    assert monitor.stats() == {}
    assert monitor.get("experience") == 0
