// Stands in for CUDA's header of this name: the words and the functions that csrc/kernels/*.cu use, for the compiler of
// the CPU. Device memory is memory, streams are in order, and a failing call is one that settings() names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fibers.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static __attribute__((section("shim_shared")))

#define CUDART_VERSION 13000

typedef struct CUstream_st* cudaStream_t;

enum cudaError_t : int {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
};
enum cudaDeviceAttr : int { cudaDevAttrMultiProcessorCount = 16 };

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct cudaFuncAttributes {
    int numRegs;
};

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device);
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream);

namespace shim {

cudaError_t answer(const char* function, cudaError_t otherwise = cudaSuccess);

template <class Args>
struct Launch {
    void (*kernel)(Args);
    const Args* args;
};

template <class Args>
void call(const void* what) {
    const Launch<Args>* l = static_cast<const Launch<Args>*>(what);
    l->kernel(*l->args);
}

}  // namespace shim

template <class Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args), dim3 grid, dim3 threads, void** args, size_t, cudaStream_t) {
    const cudaError_t e = shim::answer("cudaLaunchKernel");
    if (e != cudaSuccess) return e;
    const shim::Launch<Args> what{kernel, static_cast<const Args*>(args[0])};
    shim::run(grid.x, threads.x, &shim::call<Args>, &what);
    return cudaSuccess;
}

template <class T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T*) {
    attributes->numRegs = 32;
    return shim::answer("cudaFuncGetAttributes", shim::settings().no_image ? cudaErrorNoKernelImageForDevice : cudaSuccess);
}

template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T, int, size_t) {
    *blocks = shim::settings().blocks_each;
    return shim::answer("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return static_cast<unsigned>(shim::meet(shim::Call::ballot, mask, predicate != 0 ? 1u : 0u, 0));
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, int offset) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "a number");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = shim::meet(shim::Call::shuffle_down, mask, bits, offset);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::meet(shim::Call::sync_warp, mask, 0, 0); }
inline void __syncthreads() { shim::meet(shim::Call::sync_block, 0, 0, 0); }

inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long x) {
    const unsigned long long was = *at;
    *at = was + x;
    return was;
}
inline long long atomicMax(long long* at, long long x) {
    const long long was = *at;
    *at = was > x ? was : x;
    return was;
}
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long x) {
    const unsigned long long was = *at;
    *at = was < x ? was : x;
    return was;
}
