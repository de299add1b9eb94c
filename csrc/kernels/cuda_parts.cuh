// What every device kernel shares: elements in and out, statistics, which elements are a thread's, launching.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../core/checksum.hpp"
#include "../core/half.hpp"
#include "step.hpp"

namespace revstep {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// Out of line: what few threads need keeps no registers of the others.
#if defined(__CUDACC__)
#define RS_COLD static __device__ __noinline__
#else
#define RS_COLD [[maybe_unused]] static __attribute__((noinline))
#endif

// ---- elements --------------------------------------------------------------------------------------------------

template <class C>
__device__ __forceinline__ C load_value(const void* p, DType t, int64_t i) {
    switch (t) {
        case DType::f64: return static_cast<C>(static_cast<const double*>(p)[i]);
        case DType::bf16: return static_cast<C>(bf16_to_float(static_cast<const uint16_t*>(p)[i]));
        case DType::f16: return static_cast<C>(half_to_float(static_cast<const uint16_t*>(p)[i]));
        default: return static_cast<C>(static_cast<const float*>(p)[i]);
    }
}

__device__ __forceinline__ void store_value(void* p, DType t, int64_t i, float single, double wide) {
    switch (t) {
        case DType::f64: static_cast<double*>(p)[i] = wide; break;
        case DType::bf16: static_cast<uint16_t*>(p)[i] = float_to_bf16(single); break;
        case DType::f16: static_cast<uint16_t*>(p)[i] = float_to_half(single); break;
        default: static_cast<float*>(p)[i] = single;
    }
}

template <class S>
__device__ __forceinline__ void store_fixed_view(void* p, DType t, int64_t i, S x, double unit) {
    if (t == DType::f64) store_value(p, t, i, 0.0f, to_double(x) * unit);
    else store_value(p, t, i, to_float(x) * static_cast<float>(unit), 0.0);
}

template <class S>
__device__ __forceinline__ void store_float_view(void* p, DType t, int64_t i, S x) {
    store_value(p, t, i, static_cast<float>(x), static_cast<double>(x));
}

// Of any element; a loop that knows more about its indices hoists the weights.
template <class S>
__device__ __forceinline__ uint64_t checksum_at(S x, int64_t i) {
    return checksum_term(bits_of(x), checksum_inner(static_cast<uint32_t>(i % kChecksumPeriod))) * checksum_outer(i);
}

// ---- statistics ------------------------------------------------------------------------------------------------

struct Tally {
    unsigned long long checksum = 0, bad = 0, largest = 0, first_bad = ~0ull;  // largest: bits of a double >= 0

    __device__ __forceinline__ void note(double magnitude, bool is_bad, int64_t i) {
        const unsigned long long bits = bits_of(magnitude);
        largest = bits > largest ? bits : largest;
        if (!is_bad) return;
        ++bad;
        const unsigned long long at = static_cast<unsigned long long>(i);
        first_bad = at < first_bad ? at : first_bad;
    }

    __device__ __forceinline__ void merge(const Tally& o) {
        checksum += o.checksum;
        bad += o.bad;
        largest = o.largest > largest ? o.largest : largest;
        first_bad = o.first_bad < first_bad ? o.first_bad : first_bad;
    }
};

// The numbers of some threads into the statistics. They start as all ones, see clear: which is -1 for those that are added
// to and below every magnitude, and both the largest index and -1 for the last.
__device__ __forceinline__ void add(const Tally& t, int64_t* stats, unsigned long long first) {
    unsigned long long* out = reinterpret_cast<unsigned long long*>(stats);
    atomicAdd(out, t.checksum + first);
    if (t.bad + first != 0) atomicAdd(out + 1, t.bad + first);
    atomicMax(reinterpret_cast<long long*>(out + 2), static_cast<long long>(t.largest));
    if (t.first_bad != ~0ull) atomicMin(out + 3, t.first_bad);
}

// Every thread of the block must arrive.
__device__ __forceinline__ void publish(Tally t, int64_t* stats) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        Tally o;
        o.checksum = __shfl_down_sync(kAll, t.checksum, offset);
        o.bad = __shfl_down_sync(kAll, t.bad, offset);
        o.largest = __shfl_down_sync(kAll, t.largest, offset);
        o.first_bad = __shfl_down_sync(kAll, t.first_bad, offset);
        t.merge(o);
    }
    __shared__ unsigned long long shared[4][kThreads / kWarp];
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    if (threadIdx.x % kWarp == 0) {
        shared[0][warp] = t.checksum;
        shared[1][warp] = t.bad;
        shared[2][warp] = t.largest;
        shared[3][warp] = t.first_bad;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kThreads / kWarp; ++w) {
        Tally o;
        o.checksum = shared[0][w];
        o.bad = shared[1][w];
        o.largest = shared[2][w];
        o.first_bad = shared[3][w];
        t.merge(o);
    }
    add(t, stats, blockIdx.x == 0 ? 1u : 0u);
}

// Every thread of the block must arrive. Of threads that met nothing bad, or have told it already.
__device__ __forceinline__ void publish_good(unsigned long long checksum, unsigned long long largest, int64_t* stats) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        checksum += __shfl_down_sync(kAll, checksum, offset);
        const unsigned long long other = __shfl_down_sync(kAll, largest, offset);
        largest = other > largest ? other : largest;
    }
    __shared__ unsigned long long shared[2][kThreads / kWarp];
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    if (threadIdx.x % kWarp == 0) {
        shared[0][warp] = checksum;
        shared[1][warp] = largest;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    Tally t;
    for (int w = 0; w < kThreads / kWarp; ++w) {
        Tally o;
        o.checksum = shared[0][w];
        o.largest = shared[1][w];
        t.merge(o);
    }
    add(t, stats, blockIdx.x == 0 ? 1u : 0u);
}

__device__ __forceinline__ int64_t first_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ __forceinline__ int64_t stride() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// ---- launching -------------------------------------------------------------------------------------------------

// The error is told once: left where the runtime keeps it, the next good launch, of whatever library, would fail.
inline void require(cudaError_t e, const char* what) {
    if (e == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string("revstep kernel: ") + what + " failed: " + cudaGetErrorString(e));
}

// Of all ones: a launch fewer than with zeros among them. A kernel adds the 1 that is missing; without elements none runs.
inline void clear(int64_t* stats, int64_t n, cudaStream_t stream) {
    require(cudaMemsetAsync(stats, 0xff, 4 * sizeof(int64_t), stream), "clearing the statistics");
    if (n == 0) require(cudaMemsetAsync(stats, 0, 3 * sizeof(int64_t), stream), "clearing the statistics");
}

// As many blocks as the device holds at once, or as have something to do: threads that go on save the ends of others.
template <class Args>
unsigned blocks_for(void (*kernel)(const Args), int64_t n) {
    int device = 0, processors = 0, each = 0;
    require(cudaGetDevice(&device), "finding the current device");
    require(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "reading the device");
    require(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0), "asking for the occupancy");
    const int64_t wanted = (n + kThreads - 1) / kThreads, most = int64_t{processors} * (each > 0 ? each : 1);
    return static_cast<unsigned>(wanted < most ? wanted : most);
}

// n: threads that have something to do. Not <<<>>>: a function that whoever compiles this for the CPU can give.
template <class Args>
void launch(void (*kernel)(const Args), const Args& args, int64_t n, cudaStream_t stream) {
    if (n == 0) return;
    void* parameters[] = {const_cast<Args*>(&args)};
    require(cudaLaunchKernel(kernel, dim3(blocks_for(kernel, n)), dim3(kThreads), parameters, 0, stream), "launching");
}

}  // namespace
}  // namespace revstep
