"""An array in simulated device memory that Dask can move, keep and spill as it does with cupy's."""

import numpy as np
from cuda.bindings import driver
from cuda.core import Device
from dask.sizeof import sizeof
from dask_cuda.is_device_object import is_device_object
from distributed.protocol import dask_deserialize, dask_serialize


def _call(function, *words):
    "What a driver function answers in this thread; its errors are raised"
    Device().set_current()  # Dask's threads have no context of their own
    error, *answer = function(*words)
    if error:
        raise RuntimeError(f"{function.__name__}: {error.name}")
    return answer[0] if answer else None


class DeviceArray:
    "Bytes in device memory of the current context"

    def __init__(self, values: np.ndarray):
        host = np.ascontiguousarray(values, dtype=np.uint8)
        self.nbytes = host.nbytes
        self.pointer = _call(driver.cuMemAlloc, self.nbytes)
        _call(driver.cuMemcpyHtoD, self.pointer, host.ctypes.data, self.nbytes)

    def to_host(self) -> np.ndarray:
        host = np.empty(self.nbytes, dtype=np.uint8)
        _call(driver.cuMemcpyDtoH, host.ctypes.data, self.pointer, self.nbytes)
        return host

    def __del__(self):
        driver.cuMemFree(self.pointer)


is_device_object.register(DeviceArray)(lambda array: True)
sizeof.register(DeviceArray)(lambda array: array.nbytes)


@dask_serialize.register(DeviceArray)
def _serialize(array):
    return {}, [memoryview(array.to_host())]


@dask_deserialize.register(DeviceArray)
def _deserialize(header, frames):
    return DeviceArray(np.frombuffer(frames[0], dtype=np.uint8))
