"""Running a `.tflite` file and timing it, on the maintained LiteRT interpreter."""

from tfcomp.runtime.interpreter import Interpreter
from tfcomp.runtime.latency import Latency, latencies, latency

__all__ = ["Interpreter", "Latency", "latencies", "latency"]
