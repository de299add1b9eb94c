// A fingerprint of a strided tensor from some of its memory: one unit of 64 bytes out of every `every` units,
// at a place that the seed moves about. With every = 1 it is a checksum of all of it.
//
// Elements are numbered in the order of the dimensions given, which the caller sorts as they lie in memory.
// Element i contributes its bits times inner(i mod 128) times outer(i / 128): the weights of the checksum.
// All of them are odd, so a change of a single element that is looked at always changes the sum.
#pragma once

#include "checksum.hpp"

namespace revstep {

constexpr int kSampleDims = 16;
constexpr int kSampleUnit = 64;  // bytes: a line of the cache

struct SampleArgs {
    const void* data;
    int width;  // bytes of an element: 1, 2, 4 or 8
    int dims;
    int64_t size[kSampleDims], stride[kSampleDims];  // outermost first, strides in elements
    int64_t n;                                       // product of the sizes
    int64_t every;                                   // one unit of so many
    uint32_t seed;
    int64_t* out;  // one sum
};

RS_FN int64_t sample_group(const SampleArgs& s) { return kSampleUnit / s.width; }

RS_FN int64_t sample_units(const SampleArgs& s) { return (s.n + sample_group(s) - 1) / sample_group(s); }

RS_FN int64_t sample_chosen(const SampleArgs& s) { return (sample_units(s) + s.every - 1) / s.every; }

// Which unit is looked at among the j-th `every` of them.
RS_FN int64_t sample_unit(const SampleArgs& s, int64_t j) {
    const int64_t first = j * s.every, rest = sample_units(s) - first;
    const uint64_t among = static_cast<uint64_t>(rest < s.every ? rest : s.every);
    // no division
    return first + static_cast<int64_t>(checksum_mix(static_cast<uint32_t>(j) + s.seed) * among >> 32);
}

// Where element i lies, in elements.
RS_FN int64_t sample_offset(const SampleArgs& s, int64_t i) {
    int64_t at = 0;
    for (int d = s.dims - 1; d > 0; --d) {
        at += i % s.size[d] * s.stride[d];
        i /= s.size[d];
    }
    return at + i * s.stride[0];
}

RS_FN uint64_t sample_term(const SampleArgs& s, int64_t at, uint32_t inner) {
    switch (s.width) {
        case 8: return checksum_term(static_cast<const uint64_t*>(s.data)[at], inner);
        case 4: return checksum_term(static_cast<const uint32_t*>(s.data)[at], inner);
        case 2: return checksum_term(uint32_t{static_cast<const uint16_t*>(s.data)[at]}, inner);
        default: return checksum_term(uint32_t{static_cast<const uint8_t*>(s.data)[at]}, inner);
    }
}

}  // namespace revstep
