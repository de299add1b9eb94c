#include "look.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu_parts.hpp"
#include "look_parts.hpp"

namespace revstep {
namespace {

[[maybe_unused]] constexpr int64_t kChunk = 4096, kSerialBelow = 65536;
[[maybe_unused]] constexpr int kMostThreads = 1024;  // as in cpu.cpp

int bytes_of(DType t) {
    if (t == DType::f64 || t == DType::i64) return 8;
    return t == DType::bf16 || t == DType::f16 ? 2 : 4;
}

const LookBody& choose(Isa isa) {
    [[maybe_unused]] const int level = usable_level(isa);
#if defined(REVSTEP_X86_LEVELS)
    if (level == 2) return isa_v4::look_body;
    if (level == 1) return isa_v3::look_body;
#endif
    return isa_generic::look_body;
}

int64_t different(const unsigned char* a, const unsigned char* b, int64_t count, int width) {
    if (std::memcmp(a, b, static_cast<size_t>(count * width)) == 0) return 0;
    int64_t found = 0;
    const size_t bytes = static_cast<size_t>(width);
    for (int64_t i = 0; i < count; ++i) found += std::memcmp(a + i * width, b + i * width, bytes) != 0;
    return found;
}

int64_t differs_in(const DecodeArgs& s, int64_t at, Isa isa) {
    alignas(64) unsigned char seen[8 * kChunk];
    const int64_t count = std::min(kChunk, s.n - at);
    const int width = bytes_of(s.view_type), state_width = bytes_of(s.state);
    const void* state = static_cast<const unsigned char*>(s.state_data) + at * state_width;
    decode_cpu({count, state, seen, s.state, s.view_type, s.frac_bits}, 1, isa);
    return different(seen, static_cast<const unsigned char*>(s.view) + at * width, count, width);
}

// The elements between the first and the last of a tensor are fewer than any memory has, and there is an address.
void check_extent(const void* data, const std::vector<int64_t>& size, const std::vector<int64_t>& stride) {
    int64_t last = 0, n = 1;
    for (size_t d = 0; d < size.size(); ++d) {
        if (size[d] < 0 || stride[d] < 0 || size[d] > kMostElements || stride[d] > kMostElements)
            throw std::invalid_argument("revstep sample: a size or stride is negative, or larger than any memory");
        if (size[d] == 0) return;
        const bool moves = size[d] > 1 && stride[d] > 0;
        if (moves && (size[d] - 1 > kMostElements / stride[d] || size[d] > kMostElements / n))
            throw std::invalid_argument("revstep sample: sizes and strides reach further than any memory");
        last += moves ? (size[d] - 1) * stride[d] : 0;
        n *= moves ? size[d] : 1;
    }
    if (last > kMostElements) throw std::invalid_argument("revstep sample: sizes and strides reach further than any memory");
    if (data == nullptr) throw std::invalid_argument("revstep sample: data is a null pointer");
}

}  // namespace

void sample_cpu(const SampleArgs& s, Isa isa) { *s.out = static_cast<int64_t>(choose(isa).sample(s)); }

SampleArgs sample_args(const void* data, int width, std::vector<int64_t> size, std::vector<int64_t> stride,
                       int64_t every, uint32_t seed, int64_t* out) {
    if (size.size() != stride.size() || every < 1)
        throw std::invalid_argument("revstep sample: sizes and strides differ in number, or every < 1");
    if (out == nullptr) throw std::invalid_argument("revstep sample: out is a null pointer");
    check_extent(data, size, stride);
    if (width == 16) {
        for (int64_t& step : stride) step *= 2;
        size.push_back(2);
        stride.push_back(1);
        width = 8;
    }
    if (width != 1 && width != 2 && width != 4 && width != 8)
        throw std::invalid_argument("revstep sample: elements of an unknown width");
    std::vector<size_t> order(size.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return stride[a] > stride[b]; });
    SampleArgs s{data, width, 0, {}, {}, 1, every, seed, out};
    for (const size_t d : order) {
        if (size[d] == 0) s.n = 0;
        if (size[d] == 1 || stride[d] == 0) continue;
        s.n *= size[d];
        if (s.dims > 0 && s.stride[s.dims - 1] == size[d] * stride[d]) {
            s.size[s.dims - 1] *= size[d];
            s.stride[s.dims - 1] = stride[d];
            continue;
        }
        if (s.dims == kSampleDims) throw std::invalid_argument("revstep sample: too many dimensions");
        s.size[s.dims] = size[d];
        s.stride[s.dims++] = stride[d];
    }
    if (s.dims == 0) {
        s.size[0] = s.stride[0] = 1;
        s.dims = 1;
    }
    return s;
}

int64_t differs_cpu(const DecodeArgs& s, [[maybe_unused]] int threads, Isa isa) {
    check(s);
    const int64_t chunks = (s.n + kChunk - 1) / kChunk;
    int64_t found = 0;
#if defined(_OPENMP)
    if (threads > 1 && s.n >= kSerialBelow) {
        const int count = std::min(threads, kMostThreads);
#pragma omp parallel for num_threads(count) reduction(+ : found) schedule(static)
        for (int64_t c = 0; c < chunks; ++c) found += differs_in(s, c * kChunk, isa);
        return found;
    }
#endif
    for (int64_t c = 0; c < chunks; ++c) found += differs_in(s, c * kChunk, isa);
    return found;
}

}  // namespace revstep
