// The functions of the CUDA runtime, without CUDA.
#include <cuda_runtime.h>

namespace {

cudaError_t last = cudaSuccess;

}  // namespace

namespace shim {

cudaError_t answer(const char* function, cudaError_t otherwise) {
    cudaError_t e = otherwise;
    Settings& s = settings();
    if (std::strcmp(s.failing, function) == 0 && s.failing_after-- == 0) {
        s.failing = "";
        e = cudaErrorInvalidValue;
    }
    if (e != cudaSuccess) last = e;
    return e;
}

}  // namespace shim

cudaError_t cudaGetLastError() {
    const cudaError_t e = last;
    last = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError() { return last; }

const char* cudaGetErrorString(cudaError_t e) {
    switch (e) {
        case cudaSuccess: return "no error";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
        default: return "invalid argument";
    }
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return shim::answer("cudaGetDevice");
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = shim::settings().no_device ? 0 : 1;
    return shim::answer("cudaGetDeviceCount", shim::settings().no_device ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return shim::answer("cudaDriverGetVersion");
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = shim::settings().processors;
    return shim::answer("cudaDeviceGetAttribute");
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
    const cudaError_t e = shim::answer("cudaMemsetAsync");
    if (e == cudaSuccess) std::memset(at, value, bytes);
    return e;
}
