// Multiples of one array on the device: each thread reads an element once and writes all of them; 8 consecutive elements
// a turn where words of 16 bytes fit.
#include "cuda_eight.cuh"

namespace revstep {
namespace {

// A 16-bit product is rounded before a wider output sees it.
__device__ __forceinline__ float rounded(float x, DType t) {
    if (t == DType::bf16) return bf16_to_float(float_to_bf16(x));
    return t == DType::f16 ? half_to_float(float_to_half(x)) : x;
}
__device__ __forceinline__ double rounded(double x, DType) { return x; }

// C is what products are computed in: double for f64, else float.
template <class C, bool Rows>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleArgs s) {
    for (int64_t i = first_index(); i < s.n; i += stride()) {
        const C g = load_value<C>(s.g, s.value_type, i);
        bool second = false;
        if constexpr (Rows) second = s.choice[i / s.row_length] != 0;
#pragma unroll
        for (int k = 0; k < kMaxScaled; ++k) {
            if (k >= s.count) break;
            const double factor = second ? s.factor1[k] : s.factor[k];
            const C x = factor == 0.0 ? C{0} : rounded(g * static_cast<C>(factor), s.value_type);
            store_value(s.out[k], k + 1 < s.count ? s.value_type : s.last_type, i, static_cast<float>(x), static_cast<double>(x));
        }
    }
}

template <class W, class V>
__device__ __forceinline__ void store_products(void* to, int64_t g, const Pack<V>& g8, double factor) {
    typedef decltype(real(V{})) C;
    const C f = static_cast<C>(factor);
    Pack<W> out;
#pragma unroll
    for (int v = 0; v < kEach; ++v) {
        V product;
        narrow<false>(product, factor == 0.0 ? C{0} : real(g8.at[v]) * f);
        if constexpr (sizeof(W) == sizeof(V)) out.at[v] = product;
        else out.at[v] = static_cast<W>(real(product));
    }
    static_cast<Pack<W>*>(to)[g] = out;
}

// V: of the array and its multiples, and of the last one where that is not float32.
template <class V, bool Rows>
__global__ void __launch_bounds__(kThreads) scale_eight(const __grid_constant__ ScaleArgs s) {
    const int64_t groups = s.n / kEach;
    for (int64_t g = first_index(); g < groups; g += stride()) {
        const Pack<V> g8 = static_cast<const Pack<V>*>(s.g)[g];
        bool second = false;
        if constexpr (Rows) second = s.choice[g * kEach / s.row_length] != 0;
#pragma unroll
        for (int k = 0; k < kMaxScaled; ++k) {
            if (k >= s.count) break;
            const double factor = second ? s.factor1[k] : s.factor[k];
            if (k + 1 < s.count || s.last_type == s.value_type) store_products<V>(s.out[k], g, g8, factor);
            else store_products<float>(s.out[k], g, g8, factor);
        }
    }
}

typedef void (*Kernel)(const ScaleArgs);

bool fits_eight(const ScaleArgs& s) {
    bool fits = aligned(s.g) && s.n % kEach == 0 && s.row_length % kEach == 0;
    for (int k = 0; k < s.count; ++k) fits = fits && aligned(s.out[k]);
    return fits && (s.last_type == s.value_type || s.last_type == DType::f32);
}

template <bool Rows>
Kernel choose(const ScaleArgs& s) {
    if (fits_eight(s)) {
        if (s.value_type == DType::f32) return scale_eight<float, Rows>;
        if (s.value_type == DType::bf16) return scale_eight<Bf16, Rows>;
        if (s.value_type == DType::f16) return scale_eight<F16, Rows>;
    }
    return nullptr;
}

}  // namespace

void scale_cuda(const ScaleArgs& args, void* stream) {
    check(args);
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    const bool rows = args.row_length != 0;
    const Kernel eight = rows ? choose<true>(args) : choose<false>(args);
    if (eight != nullptr) return launch<ScaleArgs>(eight, args, args.n / kEach, on);
    if (args.value_type == DType::f64) return launch<ScaleArgs>(rows ? scale_kernel<double, true> : scale_kernel<double, false>, args, args.n, on);
    launch<ScaleArgs>(rows ? scale_kernel<float, true> : scale_kernel<float, false>, args, args.n, on);
}

}  // namespace revstep
