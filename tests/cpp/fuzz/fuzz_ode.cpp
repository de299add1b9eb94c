// Integrations: any arguments of a run are refused without a byte written, or done within the memory that they name, with the same
// bits at every level and for any number of lanes; and a fixed-point run in which nothing failed is undone to the bit.
#include <algorithm>
#include <cmath>
#include <optional>

#include "input.hpp"
#include "ode/loop.hpp"

using namespace fuzz;

namespace {

void user_field(double t, const double* x, double* out, long n, void* user) {
    const double c = *static_cast<const double*>(user);
    for (long i = 0; i < n; ++i) out[i] = c * x[(i + 1) % n] - 0.25 * x[i] + 0.125 * t;
}

std::optional<OdeResult> run(const OdeArgs& a, Isa isa) {  // nothing: the arguments were refused
    try {
        return ode_run(a, isa);
    } catch (const std::invalid_argument&) {
        return std::nullopt;
    }
}

constexpr int64_t kSaves = 64;

// What a run writes, each in memory of its own.
struct Memory {
    Block slot[2], carry, save[2], zero[2], high[2], apart, apart_at, bad, bad_value;

    Memory(int64_t systems, int64_t dim, int64_t stride)
        : slot{words(systems * dim), words(systems * dim)}, carry(static_cast<size_t>(systems * stride), 5u), save{words(kSaves * systems * dim), words(kSaves * systems * dim)},
          zero{words(systems * dim), words(systems * dim)}, high{words(systems * dim), words(systems * dim)}, apart(words(systems)), apart_at(words(systems)), bad(words(systems)),
          bad_value(words(systems)) {
        for (Block* b : {&bad}) std::memset(b->data(), 0xff, b->size());  // -1: none has failed
        for (Block* b : {&zero[0], &zero[1], &high[0], &high[1], &apart, &apart_at}) std::memset(b->data(), 0, b->size());
    }
    static Block words(int64_t count) { return Block(static_cast<size_t>(count) * 8, 3u); }
    bool operator==(const Memory& o) const {
        for (int s = 0; s < 2; ++s)
            if (!(slot[s] == o.slot[s] && save[s] == o.save[s] && zero[s] == o.zero[s] && high[s] == o.high[s])) return false;
        return carry == o.carry && apart == o.apart && apart_at == o.apart_at && bad == o.bad && bad_value == o.bad_value;
    }
};

struct Wants {
    bool slots[2], save[2], watch[5], bad, carry;
};

void place(OdeArgs& a, const Wants& w, const Memory& m) {
    for (int s = 0; s < 2; ++s) {
        a.slot[s] = w.slots[s] ? m.slot[s].data() : nullptr;
        a.save[s] = w.save[s] ? m.save[s].data() : nullptr;
        a.watch.zero[s] = w.watch[s] ? reinterpret_cast<int64_t*>(m.zero[s].data()) : nullptr;
        a.watch.high[s] = w.watch[2 + s] ? reinterpret_cast<int64_t*>(m.high[s].data()) : nullptr;
    }
    a.watch.apart = w.watch[4] ? reinterpret_cast<double*>(m.apart.data()) : nullptr;
    a.watch.apart_at = w.watch[4] ? reinterpret_cast<int64_t*>(m.apart_at.data()) : nullptr;
    a.bad = w.bad ? reinterpret_cast<int64_t*>(m.bad.data()) : nullptr;
    a.bad_value = w.bad ? reinterpret_cast<double*>(m.bad_value.data()) : nullptr;
    a.carry = w.carry ? m.carry.data() : nullptr;
}

// The number of components and of parameters that a field takes; sometimes another one.
void shape(Input& in, OdeArgs& a, std::vector<double>& params) {
    int64_t count = 1;
    a.dim = 1 + in.up_to(6);
    switch (a.field) {
        case OdeField::kepler: a.dim = 2 + in.up_to(1); break;
        case OdeField::henon_heiles:
        case OdeField::van_der_pol: a.dim = 2; break;
        case OdeField::lotka_volterra: a.dim = 2, count = 4; break;
        case OdeField::lotka_volterra_log: count = 4; break;
        case OdeField::fput: count = 2; break;
        case OdeField::linear: count = a.dim * a.dim; break;
        case OdeField::n_body: {
            const int64_t space = 1 + in.up_to(2), bodies = 1 + in.up_to(3);
            a.dim = space * bodies, count = 2 + bodies;
            params.push_back(static_cast<double>(space));
            break;
        }
        default: break;
    }
    if (in.flag(20)) a.dim = 1 + in.up_to(12);
    if (in.flag(20)) count = in.up_to(8);
    while (static_cast<int64_t>(params.size()) < count) params.push_back(in.flag(30) ? in.raw<double>() : static_cast<double>(in.raw<int16_t>()) * 0x1p-13);
    a.n_params = static_cast<int64_t>(params.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in(data, size);
    OdeArgs a{};
    std::vector<double> params, table;
    const uint8_t field = in.byte();
    a.field = static_cast<OdeField>(field < 250 ? field % 11 : static_cast<int>(field) - 252);
    shape(in, a, params);
    a.params = params.data();
    a.batch = in.up_to(11), a.fixed = !in.flag(3), a.each = a.fixed && in.flag(3);
    a.steps = in.up_to(20), a.position = in.up_to(20), a.undo = false;
    a.t0 = in.coefficient(), a.h = in.flag(10) ? in.coefficient() : 0x1p-8;
    if (in.flag(4)) a.lo = in.coefficient(), a.hi = in.coefficient();
    a.save_every = in.flag(3) ? in.up_to(4) : 0, a.until_save = a.save_every == 0 || in.flag(20) ? in.up_to(4) : 1 + in.up_to(a.save_every - 1);
    a.threads = in.small(1, 3), a.lanes = in.flag(3) ? (in.flag() ? 4 * static_cast<int>(in.up_to(9)) : in.small(0, 32)) : 0;

    a.period = in.small(1, 3);
    const int period = a.period < 0 || a.period > 3 ? 0 : a.period;
    std::vector<int32_t> counts;
    int64_t total = 0;
    for (int p = 0; p < period; ++p) {
        counts.push_back(in.flag(40) ? -1 : in.small(0, 3) % 4);
        total += std::max<int64_t>(counts.back(), 0);
    }
    a.counts = in.flag(60) ? nullptr : counts.data();
    const int stages = in.flag(3) ? static_cast<int>(1 + in.up_to(3)) : 0;
    a.tableau.stages = in.flag(60) ? -stages : stages;
    for (int i = 0; i < stages * (stages + 2); ++i) table.push_back(in.coefficient());
    a.tableau.a = table.data(), a.tableau.b = table.data() + stages * stages, a.tableau.c = a.tableau.b + stages;
    std::vector<OdeMicro> micros;
    for (int64_t k = 0; k < total; ++k)
        micros.push_back({in.small(0, 1), in.small(-1, 1), stages != 0 && in.flag() ? in.small(-1, 1) : 0, in.coefficient(), in.flag() ? 0.0 : in.coefficient(), in.flag(10) ? in.coefficient() : 0x1p-8, in.coefficient()});
    static const OdeMicro none{};
    a.micros = micros.empty() ? &none : micros.data();

    double user = 0.75;
    a.user[0] = in.flag(40) ? nullptr : user_field, a.user[1] = in.flag(40) ? nullptr : user_field, a.user_data[0] = a.user_data[1] = &user;
    const int64_t stride = in.up_to(in.flag(3) ? 20 : 200), units = a.dim * (a.each ? std::max<int64_t>(a.batch, 1) : 1);
    a.carry_stride = stride, a.carry_at = in.flag(4) ? in.up_to(1000) : 0;
    std::vector<int32_t> bits[2];
    const int finest = 30 + static_cast<int>(in.up_to(20));
    for (int64_t i = 0; i < units; ++i)
        for (std::vector<int32_t>& b : bits) b.push_back(in.flag(200) ? in.raw<int32_t>() : finest - static_cast<int32_t>(i % 3));
    if (in.flag(8)) std::reverse(bits[1].begin(), bits[1].end());
    a.frac_bits[0] = a.fixed || in.flag() ? bits[0].data() : nullptr, a.frac_bits[1] = in.flag(60) ? nullptr : bits[1].data();

    Wants wants{{!in.flag(60), !in.flag(60)}, {in.flag(), in.flag()}, {in.flag(3), in.flag(3), in.flag(3), in.flag(3), in.flag(3)}, in.flag(3), !in.flag(3)};
    if (!a.fixed) wants.watch[0] = wants.watch[1] = wants.watch[2] = wants.watch[3] = false;
    Memory start(a.batch, a.dim, stride);
    const uint32_t seed = in.raw<uint32_t>();
    const Block noise(static_cast<size_t>(2 * a.batch * a.dim) * 2, seed);
    const bool wild = in.flag(10);
    for (int64_t i = 0; i < 2 * a.batch * a.dim; ++i) {
        int16_t whole;
        std::memcpy(&whole, noise.data() + 2 * i, 2);
        const double x = static_cast<double>(whole) * 0x1p-14;
        const int64_t fixed = static_cast<int64_t>(whole) * (int64_t{1} << (finest - 14));
        unsigned char* const at = start.slot[i % 2].data() + i / 2 * 8;
        if (wild) {  // any bits, of numbers within the format
            int64_t any;
            std::memcpy(&any, at, 8);
            any /= a.fixed ? 4 : 1;
            std::memcpy(at, &any, 8);
            continue;
        }
        if (a.fixed) std::memcpy(at, &fixed, 8);
        else std::memcpy(at, &x, 8);
    }

    // Again on the same memory from the same start, for every level.
    const auto fresh = [&] {
        Memory m(a.batch, a.dim, stride);
        for (int s = 0; s < 2; ++s) m.slot[s].copy(start.slot[s]);
        return m;
    };
    Memory first = fresh();
    place(a, wants, first);
    const std::optional<OdeResult> done = run(a, Isa::generic);
    if (!done) must(first == fresh(), "a refused run has written");
    for (int level = 0; level < static_cast<int>(isa_levels().size()); ++level) {
        Memory other = fresh();
        OdeArgs b = a;
        b.lanes = done ? (level == 0 ? 1 : 0) : a.lanes;
        place(b, wants, other);
        const std::optional<OdeResult> again = run(b, static_cast<Isa>(level));
        must(again.has_value() == done.has_value(), "levels refuse different runs");
        if (!done) continue;
        must((again->bad_step < 0) == (done->bad_step < 0), "levels or lanes fail differently");
        // A run that fails ends there: how far the systems beside it have come is not said.
        const bool same = other == first && again->carry_at == done->carry_at;
        if (done->bad_step < 0) must(same, "levels or lanes give different bits");
    }
    if (!done || !a.fixed || done->bad_step >= 0 || !wants.slots[0] || !wants.slots[1]) return 0;
    for (int64_t i = 0; wants.bad && i < a.batch; ++i) {
        int64_t failed;
        std::memcpy(&failed, first.bad.data() + i * 8, 8);
        if (failed >= 0) return 0;
    }
    a.position += a.steps, a.undo = true, a.carry_at = done->carry_at, a.save_every = 0;
    const std::optional<OdeResult> undone = run(a, Isa::best);
    // Without carries |alpha| < 1 cannot be undone.
    must(undone.has_value() || !wants.carry, "what a run took, undoing refuses");
    if (!undone) return 0;
    const bool back = first.slot[0] == start.slot[0] && first.slot[1] == start.slot[1];
    must(undone->bad_step < 0 && back, "a run is not undone");
    return 0;
}
