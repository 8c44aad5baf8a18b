"""What the machine is doing, sampled by a daemon thread: processor, memory, this process, GPUs.

GPUs are seen only where the program has imported torch itself; nothing here loads it.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import deque
from typing import Any

import psutil

_MB = 1024 * 1024


class SystemMonitor:
    """Keeps the latest samples of every metric.

    interval_s: time between samples. history: samples kept per metric. hourly_cost: what an hour of
        this machine costs, for ``cost/…``; None leaves these out.
    """

    def __init__(
        self,
        interval_s: float = 1.0,
        history: int = 100,
        hourly_cost: float | None = None,
        auto_start: bool = True,
    ) -> None:
        self.interval_s = interval_s
        self._length = history
        self._hourly_cost = hourly_cost
        self._started_at_s = time.monotonic()
        self._process = psutil.Process()
        self._history: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if auto_start:
            self.start()

    def start(self) -> None:
        """Begins sampling; a second call does nothing."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="system-monitor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Samples stay readable."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def sample(self) -> None:
        """Takes one sample now."""
        values = {**self._machine(), **self._this_process(), **_gpus(), **self._cost()}
        with self._lock:
            for name, value in values.items():
                self._history.setdefault(name, deque(maxlen=self._length)).append(value)

    def get_latest(self, metric: str | None = None) -> dict[str, float] | float | None:
        """The newest value of every metric, or of one (None if there is none)."""
        with self._lock:
            if metric is not None:
                return self._history[metric][-1] if metric in self._history else None
            return {name: values[-1] for name, values in self._history.items()}

    def get_history(self, metric: str) -> list[float]:
        with self._lock:
            return list(self._history.get(metric, ()))

    def get_summary(self) -> dict[str, dict[str, float]]:
        """Per metric: latest, mean, min, max over the history."""
        with self._lock:
            return {
                name: {
                    "latest": values[-1],
                    "mean": statistics.fmean(values),
                    "min": min(values),
                    "max": max(values),
                }
                for name, values in self._history.items()
            }

    def stats(self) -> dict[str, float]:
        """The newest values as ``monitor/<metric>``."""
        latest = self.get_latest()
        assert isinstance(latest, dict)
        return {f"monitor/{name}": value for name, value in latest.items()}

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self.interval_s)

    def _machine(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        values = {
            "cpu_percent": psutil.cpu_percent(),
            "cpu_count": float(psutil.cpu_count() or 1),
            "cpu_count_logical": float(psutil.cpu_count() or 1),
            "cpu_count_physical": float(psutil.cpu_count(logical=False) or 1),
            "memory_percent": memory.percent,
            "memory_available_mb": memory.available / _MB,
            "memory_used_mb": memory.used / _MB,
            "memory_total_mb": memory.total / _MB,
        }
        temperature = _cpu_temperature()
        return values if temperature is None else {**values, "cpu_temperature": temperature}

    def _this_process(self) -> dict[str, float]:
        with self._process.oneshot():
            return {
                "process_memory_mb": self._process.memory_info().rss / _MB,
                "process_cpu_percent": self._process.cpu_percent(),
                "process_threads": float(self._process.num_threads()),
            }

    def _cost(self) -> dict[str, float]:
        if self._hourly_cost is None:
            return {}
        hours = (time.monotonic() - self._started_at_s) / 3600
        return {"cost/hourly_total": self._hourly_cost, "cost/accrued_total": self._hourly_cost * hours}


def _cpu_temperature() -> float | None:
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    for name in ("coretemp", "k10temp", "cpu_thermal"):
        if sensors.get(name):
            return float(sensors[name][0].current)
    return None


def _gpus() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    count = torch.cuda.device_count()
    values: dict[str, float] = {"gpu_count": float(count)}
    used_mb, shares, loads = 0.0, [], []
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        used_mb += (total - free) / _MB
        shares.append(100.0 * (total - free) / total)
        values[f"gpu{index}_memory_used_mb"] = (total - free) / _MB
        values[f"gpu{index}_memory_percent"] = shares[-1]
        load = _gpu_load(torch, index)
        if load is not None:
            loads.append(load)
            values[f"gpu{index}_utilization"] = load
    values["gpu_memory_used_mb_total"] = used_mb
    values["gpu_memory_percent_avg"] = statistics.fmean(shares)
    if loads:
        values["gpu_utilization_avg"] = statistics.fmean(loads)
    return values


def _gpu_load(torch: Any, index: int) -> float | None:
    try:
        return float(torch.cuda.utilization(index))
    except (ImportError, RuntimeError):  # needs NVIDIA's management library
        return None
