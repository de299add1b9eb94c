// bfloat16 and IEEE half, to and from float, on their bits.
// Branchless, so that the loops around vectorise; no subnormal float ever appears as an operand, so that
// flush-to-zero modes (torch.set_flush_denormal) change nothing.
#pragma once

#include "portable.hpp"

namespace revstep {

RS_FN float bf16_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

RS_FN uint16_t float_to_bf16(float x) {
    const uint32_t u = bits_of(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t quiet = (u >> 16) | 0x40u;  // rounding could turn a NaN into infinity
    return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

RS_FN uint16_t finite_to_bf16(float x) {
    const uint32_t u = bits_of(x);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

RS_FN float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t body = h & 0x7fffu;
    const uint32_t shifted = body << 13;
    const uint32_t normal = shifted + (body >= 0x7c00u ? 224u << 23 : 112u << 23);
    // 2^-14 * (1 + m / 1024) - 2^-14 = m * 2^-24
    const uint32_t tiny = bits_of(float_of(shifted + (113u << 23)) - 0x1p-14f);
    return float_of(sign | (body < 0x0400u ? tiny : normal));
}

RS_FN uint16_t float_to_half(float x) {
    const uint32_t u = bits_of(x);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t a = u & 0x7fffffffu;
    const uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
    // Adding 0.5 leaves |x| * 2^24, rounded half to even, in the low bits.
    const uint32_t tiny = bits_of(float_of(a) + 0.5f) - bits_of(0.5f);
    const uint32_t special = a > 0x7f800000u ? 0x7e00u | ((a >> 13) & 0x3ffu) : 0x7c00u;
    uint32_t r = a < (113u << 23) ? tiny : normal;
    r = a >= 0x477ff000u ? special : r;  // 65520, the first value that rounds to infinity
    return static_cast<uint16_t>(sign | r);
}

}  // namespace revstep
