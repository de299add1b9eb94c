#include "look.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace revstep {
namespace {

constexpr int64_t kChunk = 4096, kSerialBelow = 65536;

int bytes_of(DType t) { return t == DType::f64 || t == DType::i64 ? 8 : t == DType::bf16 || t == DType::f16 ? 2 : 4; }

struct Weights {
    uint32_t inner[kChecksumPeriod];
};

constexpr Weights make_weights() {
    Weights w{};
    for (uint32_t j = 0; j < kChecksumPeriod; ++j) w.inner[j] = checksum_inner(j);
    return w;
}

constexpr Weights kWeights = make_weights();

// Elements [i, i + count) of one run that begins at `at`, within one period of the weights.
template <class Word, class Wide>
uint64_t run_of(const void* data, int64_t at, int64_t i, int64_t count) {
    const Word* x = static_cast<const Word*>(data) + at;
    const uint32_t* inner = kWeights.inner + i % kChecksumPeriod;
    uint64_t sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += checksum_term(static_cast<Wide>(x[k]), inner[k]);
    return sum * checksum_outer(i);
}

uint64_t unit_run(const SampleArgs& s, int64_t at, int64_t i, int64_t count) {
    switch (s.width) {
        case 8: return run_of<uint64_t, uint64_t>(s.data, at, i, count);
        case 4: return run_of<uint32_t, uint32_t>(s.data, at, i, count);
        case 2: return run_of<uint16_t, uint32_t>(s.data, at, i, count);
        default: return run_of<uint8_t, uint32_t>(s.data, at, i, count);
    }
}

int64_t different(const unsigned char* a, const unsigned char* b, int64_t count, int width) {
    if (std::memcmp(a, b, static_cast<size_t>(count * width)) == 0) return 0;
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) found += std::memcmp(a + i * width, b + i * width, static_cast<size_t>(width)) != 0;
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

// All of one run in memory: a period of the weights at a time.
template <class Word, class Wide>
uint64_t whole_dense(const SampleArgs& s) {
    const Word* x = static_cast<const Word*>(s.data);
    uint64_t sum = 0;
    for (int64_t i = 0; i < s.n; i += kChecksumPeriod) {
        if (i + kChecksumPeriod > s.n) return sum + run_of<Word, Wide>(s.data, i, i, s.n - i);
        uint64_t part = 0;
        for (int64_t k = 0; k < kChecksumPeriod; ++k) part += checksum_term(static_cast<Wide>(x[i + k]), kWeights.inner[k]);
        sum += part * checksum_outer(i);
    }
    return sum;
}

// One run in memory, as most tensors are: whole units of a constant length, and the line some units ahead is asked for, since the
// hardware does not guess which one comes next.
template <class Word, class Wide>
uint64_t sample_dense(const SampleArgs& s) {
    if (s.every == 1) return whole_dense<Word, Wide>(s);
    constexpr int64_t group = kSampleUnit / static_cast<int64_t>(sizeof(Word)), ahead = 12;
    const Word* x = static_cast<const Word*>(s.data);
    const int64_t chosen = sample_chosen(s);
    uint64_t sum = 0;
    for (int64_t j = 0; j < chosen; ++j) {
        if (j + ahead < chosen) __builtin_prefetch(x + sample_unit(s, j + ahead) * group);
        const int64_t i = sample_unit(s, j) * group;
        if (i + group > s.n) {
            sum += run_of<Word, Wide>(s.data, i, i, s.n - i);
            continue;
        }
        uint64_t unit = 0;
        for (int64_t k = 0; k < group; ++k) unit += checksum_term(static_cast<Wide>(x[i + k]), kWeights.inner[i % kChecksumPeriod + k]);
        sum += unit * checksum_outer(i);
    }
    return sum;
}

uint64_t sample_strided(const SampleArgs& s) {
    const int64_t group = sample_group(s), chosen = sample_chosen(s);
    const int64_t run = s.stride[s.dims - 1] == 1 ? s.size[s.dims - 1] : 1;  // elements side by side in memory
    uint64_t sum = 0;
    for (int64_t j = 0; j < chosen; ++j) {
        const int64_t begin = sample_unit(s, j) * group, end = std::min(s.n, begin + group);
        for (int64_t i = begin; i < end;) {
            const int64_t count = std::min(end - i, run - i % run);
            sum += unit_run(s, sample_offset(s, i), i, count);
            i += count;
        }
    }
    return sum;
}

uint64_t sample_any(const SampleArgs& s) {
    if (s.n == 0) return 0;
    if (s.dims > 1 || s.stride[0] != 1) return sample_strided(s);
    switch (s.width) {
        case 8: return sample_dense<uint64_t, uint64_t>(s);
        case 4: return sample_dense<uint32_t, uint32_t>(s);
        case 2: return sample_dense<uint16_t, uint32_t>(s);
        default: return sample_dense<uint8_t, uint32_t>(s);
    }
}

}  // namespace

void sample_cpu(const SampleArgs& s) { *s.out = static_cast<int64_t>(sample_any(s)); }

SampleArgs sample_args(const void* data, int width, std::vector<int64_t> size, std::vector<int64_t> stride, int64_t every, uint32_t seed, int64_t* out) {
    if (size.size() != stride.size() || every < 1) throw std::invalid_argument("revstep sample: sizes and strides differ in number, or every < 1");
    if (width == 16) {
        for (int64_t& step : stride) step *= 2;
        size.push_back(2);
        stride.push_back(1);
        width = 8;
    }
    if (width != 1 && width != 2 && width != 4 && width != 8) throw std::invalid_argument("revstep sample: elements of an unknown width");
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
    const int64_t chunks = (s.n + kChunk - 1) / kChunk;
    int64_t found = 0;
#if defined(_OPENMP)
    if (threads > 1 && s.n >= kSerialBelow) {
#pragma omp parallel for num_threads(threads) reduction(+ : found) schedule(static)
        for (int64_t c = 0; c < chunks; ++c) found += differs_in(s, c * kChunk, isa);
        return found;
    }
#endif
    for (int64_t c = 0; c < chunks; ++c) found += differs_in(s, c * kChunk, isa);
    return found;
}

}  // namespace revstep
