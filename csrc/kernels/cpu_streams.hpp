// Large arrays: outputs written past the cache, inputs read in several streams.
// Included where cpu_tiles.hpp is.
#pragma once

#include "cpu_tiles.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// An output line that is not in a cache is first read, to be overwritten: a third of a large step's traffic. From so many bytes of outputs on they
// would not stay in a last-level cache anyhow, and are written past it.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

#if defined(__AVX512F__)
constexpr bool kStreams = true;

RS_FN void stream_bytes(void* to, const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + i), _mm512_load_si512(static_cast<const char*>(from) + i));
}

RS_FN void stream_end() { _mm_sfence(); }
#else
constexpr bool kStreams = false;

RS_FN void stream_bytes(void* to, const void* from, int64_t bytes) { __builtin_memcpy(to, from, static_cast<unsigned long>(bytes)); }
RS_FN void stream_end() {}
#endif

RS_FN bool is_line(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// f(at) for the tiles of [begin, end), from several places in turn: a core that only reads has more of them under way then than in one stream (28 GB/s
// instead of 19 on one thread).
template <class F>
RS_FN void for_tiles_in_streams(int64_t begin, int64_t end, F f) {
    constexpr int64_t streams = 4;
    const int64_t each = (end - begin) / (streams * kTile) * kTile;
    for (int64_t at = 0; at < each; at += kTile)
        for (int64_t k = 0; k < streams; ++k) f(begin + k * each + at);
    for (int64_t at = begin + streams * each; at < end; at += kTile) f(at);
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
