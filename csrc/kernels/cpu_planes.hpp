// Carries: a byte an element in the loops, bit planes of 32 elements in memory. Included by cpu_body.cpp only.
#pragma once

#include "cpu_tiles.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// Bytes to bit planes and back. `carry` holds whole groups of 32, zero beyond the end.
void pack_tile(const uint8_t* carry, uint32_t* words, int groups, int bits) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    for (int g = 0; g < groups; ++g) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(carry + 32 * g));
        for (int p = 0; p < bits; ++p) words[g * bits + p] = _mm256_test_epi8_mask(bytes, _mm256_set1_epi8(static_cast<char>(1 << p)));
    }
#else
    for (int g = 0; g < groups; ++g)
        for (int p = 0; p < bits; ++p) {
            uint32_t word = 0;
            for (int part = 0; part < 4; ++part) {
                uint64_t eight;
                __builtin_memcpy(&eight, carry + 32 * g + 8 * part, 8);
                // Byte l's bit moves to bit 56 + l. No two of the 64 partial products meet, so nothing is carried into these.
                const uint64_t lowest = (eight >> p) & 0x0101010101010101ull;
                word |= static_cast<uint32_t>((lowest * 0x0102040810204080ull) >> 56) << (8 * part);
            }
            words[g * bits + p] = word;
        }
#endif
}

void unpack_tile(const uint32_t* words, uint8_t* carry, int groups, int bits) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    for (int g = 0; g < groups; ++g) {
        __m256i bytes = _mm256_setzero_si256();
        for (int p = 0; p < bits; ++p) bytes = _mm256_or_si256(bytes, _mm256_maskz_set1_epi8(words[g * bits + p], static_cast<char>(1 << p)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(carry + 32 * g), bytes);
    }
#else
    for (int g = 0; g < groups; ++g)
        for (int part = 0; part < 4; ++part) {
            uint64_t eight = 0;
            for (int p = 0; p < bits; ++p) {
                const uint64_t byte = (words[g * bits + p] >> (8 * part)) & 0xffu;
                const uint64_t spread = (byte * 0x0101010101010101ull) & 0x8040201008040201ull;  // bit l in byte l
                // 2^7 - 2^l is added to byte l: its top bit is set exactly where it held 2^l, and no byte overflows.
                eight |= (((spread + 0x00406070787c7e7full) >> 7) & 0x0101010101010101ull) << p;
            }
            __builtin_memcpy(carry + 32 * g + 8 * part, &eight, 8);
        }
#endif
}

// Bytes of the tile from the words of the forward step.
void read_carry(const StepArgs& s, uint8_t* carry, int64_t at, int m) {
    if (s.carry_bits != 0) unpack_tile(s.carry + at / 32 * s.carry_bits, carry, (m + 31) / 32, s.carry_bits);
}

void write_carry(const StepArgs& s, uint8_t* carry, int64_t at, int m) {
    if (s.carry_bits == 0) return;
    const int groups = (m + 31) / 32;
    for (int j = m; j < 32 * groups; ++j) carry[j] = 0;
    pack_tile(carry, s.carry + at / 32 * s.carry_bits, groups, s.carry_bits);
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
