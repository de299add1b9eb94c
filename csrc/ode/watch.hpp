// All steps of a tile: stretches of plain ones, each in a function of its own, and between them the steps that are looked at,
// whose micro-steps are the same and which note what these did to the numbers. Included by loop_body.cpp only.
#pragma once

#include "tile.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <bool Fixed, int W, bool Each>
struct Watched : Tile<Fixed, Erased, W, Each> {
    typedef Tile<Fixed, Erased, W, Each> Base;
    using Base::a;
    using Base::begin;
    using Base::count;
    using Base::plan;
    using Base::size;

    RS_MEMBER Watched(const OdePlan& p, OdeShare& result, int64_t first, int64_t end, double* room, const Resume& resume)
        : Base(erased<W>(*p.args, result), p, first, end, room, result, resume) {}

    // Of one micro-step that was right: f is what it was made of.
    template <int I>
    void increments(const PlannedMicro& m, const double* f) {
        const OdeWatch& watch = a.watch;
        if (!Fixed || watch.zero[I] == nullptr || watch.high[I] == nullptr || m.gamma == 0.0) return;
        int64_t *const zero = watch.zero[I], *const high = watch.high[I];
        for (int k = 0; k < count; ++k)
            for (int i = 0; i < size(); ++i) {
                const int b = k / W, l = k % W;
                const double phi = f[this->place(b, i, l)];
                const int64_t x = quantise<int64_t>(scaled_value(phi, m.gamma, this->unit(this->up[I], b, i, l))), d = x < 0 ? -x : x, at = (begin + k) * a.dim + i;
                zero[at] += phi != 0.0 && d == 0 ? 1 : 0;
                high[at] = d > high[at] ? d : high[at];
            }
    }

    template <int I>
    bool take(const PlannedMicro& m, int64_t n) {
        if (!this->template micro<I, false>(m, n)) return false;
        increments<I>(m, m.function < 0 ? this->template view<1 - I>() : this->template phi<1 - I>());
        return true;
    }

    void distance(int64_t n) {
        if (a.watch.apart == nullptr || a.watch.apart_at == nullptr) return;
        for (int k = 0; k < count; ++k)
            for (int i = 0; i < size(); ++i) {
                const int j = this->place(k / W, i, k % W);
                const double apart = abs_of(this->template view<0>()[j] - this->template view<1>()[j]);
                if (apart > a.watch.apart[begin + k]) a.watch.apart[begin + k] = apart, a.watch.apart_at[begin + k] = n;
            }
    }

    bool whole(int64_t n, Resume& resume) {
        for (int k = plan.first[resume.phase]; k < plan.first[resume.phase + 1]; ++k) {
            const PlannedMicro& m = plan.micros[k];
            if (!(m.slot == 0 ? take<0>(m, n) : take<1>(m, n))) return false;
        }
        distance(n);
        if (!this->inspect(n)) return false;
        this->template taken<false>(resume);
        return true;
    }
};

// What one tile of a call works with.
struct Job {
    const OdePlan& plan;
    int64_t begin, end;  // systems
    double* scratch;
    OdeShare& share;
};

template <bool Fixed, int W, bool Each>
__attribute__((noinline)) bool watched_step(const Job& on, Resume& resume, int64_t n) {
    Watched<Fixed, W, Each> tile(on.plan, on.share, on.begin, on.end, on.scratch, resume);
    const bool good = tile.whole(n, resume);
    tile.put_down(resume);
    return good;
}

template <bool Fixed, class Field, int W, bool Each>
__attribute__((noinline)) bool plain_steps(const Field& field, const Job& on, Resume& resume, int64_t from, int64_t stop) {
    Tile<Fixed, Field, W, Each> tile(field, on.plan, on.begin, on.end, on.scratch, on.share, resume);
    return tile.stretch(resume, from, stop);
}

template <bool Fixed, class Field, int W, bool Each = false>
void run_tile(const Field& field, const Job& on) {
    const OdeArgs& a = *on.plan.args;
    const int64_t start = a.undo ? a.position - 1 : a.position;
    Resume resume;
    resume.carry_at = a.carry_at, resume.phase = static_cast<int>(start % a.period), resume.until = a.until_save;
    Watched<Fixed, W, Each> ends(on.plan, on.share, on.begin, on.end, on.scratch, resume);
    ends.enter();
    for (int64_t k = 0; k < a.steps; ++k) {
        const int64_t look = on.plan.looks ? ode_looked_at(start + k) - start : a.steps, stop = look < a.steps ? look : a.steps;
        if (k < stop && !plain_steps<Fixed, Field, W, Each>(field, on, resume, k, stop)) break;
        k = stop;
        if (k == a.steps || !watched_step<Fixed, W, Each>(on, resume, start + k)) break;
    }
    ends.leave();
    on.share.carry_at = resume.carry_at;
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
