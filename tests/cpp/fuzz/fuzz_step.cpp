// Coefficient plans and carries. Any arguments of step and inverse: refused without a byte written, or done within the memory that
// they name; the same bits at every level and thread count; and what step made without a bad element, inverse undoes to the bit.
#include <algorithm>
#include <cmath>

#include "input.hpp"

using namespace fuzz;

namespace {

int bits_for(double alpha) {
    int bits = 0;
    for (double a = std::fabs(alpha); a < 1.0 && bits < 9; a *= 2.0) ++bits;
    return bits;
}

struct Arrays {
    Block out, view, carry;
    int64_t stats[4] = {1, 2, 3, 4};
    bool same(const Arrays& o) const { return out == o.out && view == o.view && carry == o.carry && std::memcmp(stats, o.stats, sizeof stats) == 0; }
};

template <class Kernel>
bool run(Kernel kernel, StepArgs s, Arrays& a, bool null_out, bool null_stats, int threads, Isa isa) {
    s.out = null_out ? nullptr : a.out.data();
    s.view = s.view != nullptr ? a.view.data() : nullptr;
    s.carry = s.carry != nullptr ? reinterpret_cast<uint32_t*>(a.carry.data()) : nullptr;
    s.stats = null_stats ? nullptr : a.stats;
    return accepted([&] { kernel(s, threads, isa); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in(data, size);
    StepArgs s{};
    s.n = in.up_to(400);
    const int mistake = in.flag(3) ? in.byte() % 9 : -1;  // one at a time, or few calls are taken
    s.state = in.dtype(), s.value_type = in.dtype(), s.view_type = in.dtype();
    s.alpha = in.coefficient(), s.beta = in.coefficient(), s.gamma = in.coefficient();
    s.frac_bits = in.small(0, 24), s.carry_bits = in.small(0, 9);
    if (in.flag(3)) {  // rows
        s.row_length = mistake == 0 ? in.raw<int16_t>() : 1 + in.up_to(40);
        if (s.row_length > 0 && mistake != 1) s.n -= s.n % s.row_length;
        s.alpha1 = in.coefficient(), s.beta1 = in.coefficient(), s.gamma1 = in.coefficient();
    }
    const int first_bits = bits_for(s.alpha), second_bits = bits_for(s.alpha1);
    if (!in.flag(4)) s.carry_bits = s.row_length == 0 ? first_bits : in.flag(8) ? second_bits : std::max(first_bits, second_bits);
    if (s.state != DType::i32 && s.state != DType::i64 && !in.flag(8)) s.carry_bits = 0;
    const Block source = values(in, s.state, s.n), cur = values(in, s.state, s.n), value = values(in, s.value_type, s.n);
    const Block choice(static_cast<size_t>(s.row_length > 0 ? s.n / s.row_length : 1), in.raw<uint32_t>());
    s.source = mistake == 2 ? nullptr : source.data(), s.cur = mistake == 3 ? nullptr : cur.data(), s.value = mistake == 4 ? nullptr : value.data();
    s.choice = (s.row_length != 0) != (mistake == 5) ? choice.data() : nullptr;
    const bool null_out = mistake == 6, null_stats = mistake == 7, wants_view = in.flag(), wants_carry = mistake != 8;
    static char somewhere;  // replaced by run()
    s.view = wants_view ? &somewhere : nullptr, s.carry = wants_carry ? reinterpret_cast<uint32_t*>(&somewhere) : nullptr;
    const bool inverse_first = in.flag(4);
    if (s.n != 0 && in.flag(100)) s.n = in.flag() ? -s.n : (int64_t{1} << 47) + s.n;  // a size that no memory has: must be refused

    // Room for as many planes as carry_bits says, where that can be meant at all.
    const int64_t n = s.n < 0 || s.n > 400 ? 0 : s.n;
    const size_t planes = s.carry_bits > 0 && s.carry_bits <= 64 ? static_cast<size_t>((n + 31) / 32 * s.carry_bits) : 0;
    const uint32_t seed = in.raw<uint32_t>();
    const auto arrays = [&] { return Arrays{{static_cast<size_t>(n) * width(s.state), seed}, {static_cast<size_t>(n) * width(s.view_type), seed}, {planes * 4, seed}}; };
    const auto both = [&](auto kernel, Arrays& first) {
        const Arrays before = arrays();
        const bool done = run(kernel, s, first, null_out, null_stats, 1, Isa::generic);
        if (!done) must(first.same(before), "a refused call has written");
        for (int level = 1; level < static_cast<int>(isa_levels().size()); ++level) {
            Arrays other = arrays();
            must(run(kernel, s, other, null_out, null_stats, 2, static_cast<Isa>(level)) == done, "levels refuse different calls");
            must(other.same(first), "levels give different bits");
        }
        return done;
    };
    Arrays next = arrays();
    if (inverse_first) {  // with carries that no step has made
        both(inverse_cpu, next);
        return 0;
    }
    if (!both(step_cpu, next)) return 0;
    if ((s.state != DType::i32 && s.state != DType::i64) || s.n == 0 || next.stats[1] != 0) return 0;
    Arrays prev = arrays();
    prev.carry.copy(next.carry);
    s.source = next.out.data();
    const bool undone = run(inverse_cpu, s, prev, false, false, 1, Isa::best);
    must(undone || s.carry_bits == 0, "what step took, inverse refuses");  // a step without carries need not be undone
    if (undone) must(prev.out == source, "inverse does not undo step");
    return 0;
}
