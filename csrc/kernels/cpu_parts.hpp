// Between the dispatcher and the body that is compiled once per instruction set.
#pragma once

#include "plan.hpp"

namespace revstep {

// A multiple of 32, so that carry words never straddle tiles; small, so that the loops of one tile overlap with the
// memory traffic of the next (1024 elements were half as fast on one thread, n = 2^22).
constexpr int64_t kTile = 128;

// Of kernels with one loop, which the hardware's own prefetching follows best undisturbed.
constexpr int64_t kStretch = 64 * kTile;

struct Partial {
    uint64_t checksum = 0;
    int64_t bad = 0;
    double largest = 0.0;
    int64_t first_bad = -1;
};

// One share of the work: elements [begin, end), begin a multiple of kTile.
struct CpuBody {
    void (*step)(const StepPlan&, int64_t begin, int64_t end, Partial&);
    void (*encode)(const EncodeArgs&, int64_t begin, int64_t end, Partial&);
    void (*decode)(const DecodeArgs&, int64_t begin, int64_t end, Partial&);
    void (*checksum)(const ChecksumArgs&, int64_t begin, int64_t end, Partial&);
    void (*scale)(const ScaleArgs&, int64_t begin, int64_t end, Partial&);
};

// 0 generic, 1 v3, 2 v4; throws where this CPU lacks it.
int usable_level(Isa isa);

namespace isa_generic {
extern const CpuBody body;
}
namespace isa_v3 {
extern const CpuBody body;
}
namespace isa_v4 {
extern const CpuBody body;
}

}  // namespace revstep
