// A wrapping sum of mixed (index, value): order-independent, so that any split of the work gives the same number.
#pragma once

#include "portable.hpp"

namespace revstep {

constexpr uint32_t kChecksumStride = 0x9E3779B1u;

// What kChecksumStride is added to from one element to the next (within 2^32 of them).
RS_FN uint32_t checksum_start(uint64_t index) {
    return static_cast<uint32_t>(index) * kChecksumStride + static_cast<uint32_t>(index >> 32) * 0x85EBCA77u + 0x27D4EB2Fu;
}

// Always odd: a change of one 32-bit word always changes the sum.
RS_FN uint32_t checksum_weight(uint32_t a) {
    a ^= a >> 15;
    a *= 0x2C1B3C6Du;
    a ^= a >> 12;
    return a | 1u;
}

RS_FN uint64_t checksum_term(uint32_t word, uint32_t weight) { return static_cast<uint64_t>(word) * weight; }

RS_FN uint64_t checksum_term(uint64_t word, uint32_t weight) {
    return static_cast<uint64_t>(static_cast<uint32_t>(word)) * weight +
           static_cast<uint64_t>(static_cast<uint32_t>(word >> 32)) * (weight ^ 0x5BD1E994u);
}

}  // namespace revstep
