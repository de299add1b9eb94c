// Between the dispatcher and the body that is compiled once per instruction set.
#pragma once

#include "../core/fixed.hpp"
#include "loop.hpp"

namespace revstep {

constexpr int kLanes = 16;      // systems side by side in a batch: a block
constexpr int kMostBlocks = 4;  // in a tile

// A checked micro-step with all that is constant over the run.
struct PlannedMicro : OdeMicro {
    FixedCoef coef;
    int carry_bits;
    bool plain;  // alpha = 1, beta = 0 and a gamma whose product with a unit is exact
};

struct OdePlan {
    const OdeArgs* args;
    const PlannedMicro* micros;
    const int32_t* first;  // of each program; one more at the end
    const double *up[2], *down[2];  // 2^F, 2^-F: dim of them, or batch * dim where args->each
    bool looks;                     // something of the watch is asked for, and the run goes forwards
};

struct OdeShare {  // what one thread gives back
    int64_t evaluations = 0;
    int64_t bad_step = -1, bad_system = -1;
    double largest = 0.0, failed = 0.0;  // magnitudes: of what was in a slot after a step; of what did not fit
    int64_t carry_at = 0;
    OdeFault fault = OdeFault::none;
    int64_t fault_component = -1;
    double fault_t = 0.0;
};

// Before a call of the caller's function `out` is filled with this NaN, which no arithmetic makes: what is left of it was not written.
constexpr uint64_t kUnwritten = 0x7ff8726576737465ull;

struct OdeBody {
    // Systems begin .. end - 1, at most `lanes` of them: 1, or up to kMostBlocks times kLanes. `scratch`: ode_scratch() doubles.
    void (*run)(const OdePlan&, int64_t begin, int64_t end, int lanes, double* scratch, OdeShare&);
    void (*math)(OdeMath function, const double* x, double* out, int64_t n);
};

// Doubles of scratch for a tile: two slots and their views, two values of the field, the general path's two, an argument
// and the stages of an increment, each padded to a cache line; where every system has units of its own, those of the tile.
RS_FN int64_t ode_padded(int64_t dim, int lanes) { return (dim * lanes + 7) / 8 * 8; }
RS_FN int64_t ode_scratch(int64_t dim, int lanes, int stages, bool each) { return ode_padded(dim, lanes) * (12 + stages + (each ? 4 : 0)); }

namespace isa_generic {
extern const OdeBody ode_body;
}
namespace isa_v3 {
extern const OdeBody ode_body;
}
namespace isa_v4 {
extern const OdeBody ode_body;
}

}  // namespace revstep
