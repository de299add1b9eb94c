// A wrapping sum of words times weights that depend on the index: order-independent, so that any split of the work gives the same number.
// The weight of element i is inner(i mod 128) * outer(i / 128), so that a tile needs one mixed number and a table.
#pragma once

#include "portable.hpp"

namespace revstep {

constexpr int kChecksumPeriod = 128;

// Odd: a change of one 32-bit word always changes the sum. Another number for every k < 2^31: each line maps the odd numbers one to one.
RS_FN constexpr uint32_t checksum_mix(uint32_t k) {
    uint32_t a = (2 * k + 1) * 0x9E3779B1u;
    a ^= (a >> 15) & ~1u;
    a *= 0x2C1B3C6Du;
    a ^= (a >> 12) & ~1u;
    return a;
}

RS_FN constexpr uint32_t checksum_inner(uint32_t place) { return checksum_mix(place); }

// No tile shares a number with a place: (tile, place) and (place, tile) would weigh the same.
RS_FN constexpr uint32_t checksum_outer(int64_t index) {
    return checksum_mix(static_cast<uint32_t>(static_cast<uint64_t>(index) / kChecksumPeriod) + kChecksumPeriod);
}

RS_FN constexpr uint64_t checksum_term(uint32_t word, uint32_t inner) { return static_cast<uint64_t>(word) * inner; }

RS_FN constexpr uint64_t checksum_term(uint64_t word, uint32_t inner) {
    return static_cast<uint64_t>(static_cast<uint32_t>(word)) * inner +
           static_cast<uint64_t>(static_cast<uint32_t>(word >> 32)) * (inner ^ 0x5BD1E994u);
}

}  // namespace revstep
