// Steps and inverses on the shim and on the CPU: one random case, both ways.
#pragma once

#include "fibers.hpp"
#include "trial.hpp"

namespace trial {

struct Case {
    int64_t n = 0, row_length = 0;
    DType state{}, value{}, view{};
    double alpha[2] = {}, beta[2] = {}, gamma[2] = {};
    int frac_bits = 0, bits = 0;
    bool has_view = true, keeps_carry = true;
    bool aligned = false;  // every array, so that it can be read in words of 16 bytes
    Bytes source, cur, f, choice;
    int in_place = 0;  // 1: out is source, 2: out is cur
};

struct Result {
    Bytes out, view, carry;
    int64_t stats[4] = {-7, -7, -7, -7};
};

inline int bits_for(double alpha) {
    int b = 0;
    for (double a = std::fabs(alpha); a < 1.0; a *= 2.0) ++b;
    return b;
}

inline double random_alpha(check::Random& r, int kind) {
    const double sign = r.next() % 2 == 0 ? 1.0 : -1.0;
    if (kind == 0) return sign;
    if (kind == 1) return sign * std::ldexp(1.0, -static_cast<int>(r.between(1, 8)));
    const double magnitude = std::ldexp(1.0 + r.unit(), static_cast<int>(r.between(-8, 0)));
    return sign * std::floor(magnitude * 0x1p24) * 0x1p-24;
}

inline double random_beta(check::Random& r, double alpha) {
    switch (r.next() % 5) {
        case 0: return 0.0;
        case 1: return static_cast<double>(r.between(-4, 4));
        case 2: return static_cast<double>(r.between(-3, 3)) + (r.next() % 2 == 0 ? 1.0 : -1.0) * std::ldexp(1.0, -static_cast<int>(r.between(1, 10)));
        case 3: return 1.0 - alpha;
        default: return std::floor((r.unit() - 0.5) * 8.0 * 0x1p24) * 0x1p-24;
    }
}

inline Case random_case(check::Random& r, int64_t longest) {
    static const int64_t lengths[] = {0, 1, 31, 32, 33, 127, 128, 129, 255, 256, 257, 1000, 2048, 2049};
    const bool wild = r.next() % 2 == 0;
    Case c;
    c.n = std::min(longest, r.next() % 4 == 0 ? r.between(0, longest) : one_of(r, lengths));
    c.state = one_of(r, kStates);
    c.value = one_of(r, kValues);
    c.view = one_of(r, kValues);
    c.has_view = r.next() % 4 != 0;
    c.aligned = r.next() % 3 != 0;
    if (c.aligned) c.view = r.next() % 2 == 0 ? c.value : DType::f32;
    if (c.aligned && c.state == DType::f64) c.value = c.view = DType::f64;
    const bool rows = r.next() % 3 == 0;
    if (rows) {
        const int64_t several[] = {1, 7, 8, 32, 100, 640};
        c.row_length = std::min(std::max<int64_t>(c.n, 1), one_of(r, several));
        c.n = c.n / c.row_length * c.row_length;
        for (int64_t i = 0; i < c.n / c.row_length; ++i) c.choice.push_back(static_cast<unsigned char>(r.next() % 2));
    }
    if (fixed(c.state)) c.frac_bits = static_cast<int>(r.next() % 3 == 0 ? r.between(0, c.state == DType::i32 ? 30 : 61) : 20);
    for (int k = 0; k < 2; ++k) {
        c.alpha[k] = random_alpha(r, static_cast<int>(r.next() % 3));
        c.beta[k] = random_beta(r, c.alpha[k]);
        c.gamma[k] = r.next() % 2 == 0 ? 1.0 : (r.unit() - 0.5) * 4.0;
        if (fixed(c.state) && (k == 0 || rows)) c.bits = std::max(c.bits, bits_for(c.alpha[k]));
    }
    c.keeps_carry = c.bits != 0 && r.next() % 5 != 0;
    c.source = make_states(r, c.state, c.n, wild);
    c.cur = make_states(r, c.state, c.n, wild);
    c.f = make_values(r, c.value, c.n, wild, std::ldexp(c.state == DType::i32 ? 0x1p31 : 0x1p62, -c.frac_bits) / c.gamma[0]);
    const bool second_reads = c.beta[0] != 0.0 || (rows && c.beta[1] != 0.0);
    c.in_place = static_cast<int>(r.next() % (second_reads ? 3 : 2));
    return c;
}

struct Rooms {
    Room source, cur, f, out, view, carry, choice;
    explicit Rooms(size_t most) : source(8 * most), cur(8 * most), f(8 * most), out(8 * most), view(8 * most), carry(8 * most), choice(most) {}
    bool intact() const { return source.intact() && cur.intact() && f.intact() && out.intact() && view.intact() && carry.intact() && choice.intact(); }
};

// level < 0: on the shim. `carry`: undo. Every array lies at a place of its own, of a random kind.
inline Result run(check::Random& r, Rooms& rooms, const Case& c, const Bytes& source, const Bytes* carry, int level) {
    const auto place = [&](Room& room, const Bytes& b, size_t w) {
        if (c.aligned) return room.take(b, b.size() % 16 == 0 && r.next() % 2 == 0, 0);
        const uint64_t kind = r.next() % 3;
        return room.take(b, kind == 0, kind == 2 ? w * (r.next() % 8) : 0);
    };
    const auto empty = [&](size_t bytes) { return Bytes(bytes, kCanary); };
    const size_t n = static_cast<size_t>(c.n);
    const int bits = carry != nullptr || c.keeps_carry ? c.bits : 0;
    Result result;
    revstep::StepArgs s{};
    s.n = c.n;
    s.source = place(rooms.source, source, width(c.state));
    const bool reads = c.beta[0] != 0.0 || (c.row_length != 0 && c.beta[1] != 0.0);
    unsigned char* cur = place(rooms.cur, c.cur, width(c.state));
    s.cur = reads ? cur : nullptr;
    s.value = place(rooms.f, c.f, width(c.value));
    Room& out = c.in_place == 1 ? rooms.source : c.in_place == 2 ? rooms.cur : rooms.out;
    unsigned char* separate = place(rooms.out, empty(n * width(c.state)), width(c.state));
    s.out = c.in_place == 1 ? const_cast<void*>(s.source) : c.in_place == 2 ? cur : separate;
    unsigned char* view = place(rooms.view, empty(c.has_view ? n * width(c.view) : 0), width(c.view));
    s.view = c.has_view ? view : nullptr;
    const Bytes words = carry != nullptr ? *carry : empty((n + 31) / 32 * static_cast<size_t>(bits) * 4);
    s.carry = reinterpret_cast<uint32_t*>(place(rooms.carry, words, 4));
    s.stats = result.stats;
    s.state = c.state;
    s.value_type = c.value;
    s.view_type = c.view;
    s.alpha = c.alpha[0];
    s.beta = c.beta[0];
    s.gamma = c.gamma[0];
    s.frac_bits = c.frac_bits;
    s.carry_bits = bits;
    if (c.row_length != 0) {
        s.choice = place(rooms.choice, c.choice, 1);
        s.row_length = c.row_length;
        s.alpha1 = c.alpha[1];
        s.beta1 = c.beta[1];
        s.gamma1 = c.gamma[1];
    } else {
        rooms.choice.take(0, false, 0);
    }
    if (level < 0) (carry != nullptr ? revstep::inverse_cuda : revstep::step_cuda)(s, nullptr);
    else (carry != nullptr ? revstep::inverse_cpu : revstep::step_cpu)(s, 1, static_cast<revstep::Isa>(level));
    result.out = out.bytes();
    result.view = rooms.view.bytes();
    result.carry = rooms.carry.bytes();
    if (!rooms.intact()) throw std::logic_error("something beside an array was written");
    return result;
}

inline void compare(const Case& c, const Result& ours, const Result& cpu, const char* way, long number) {
    const bool numbers = same(ours.out, cpu.out, c.state, way, number);
    if (c.has_view) same(ours.view, cpu.view, c.view, "the view", number);
    same(ours.carry, cpu.carry, DType::i32, "the carry", number);
    // The checksum is of bits, and those of a number that is none are the compiler's.
    bool equal = !numbers || ours.stats[0] == cpu.stats[0];
    for (int k = 1; k < 4; ++k) equal = equal && ours.stats[k] == cpu.stats[k];
    ++count().arrays;
    if (!equal) ++count().bad;
    check::expect(equal, "trial %ld: the statistics differ (checksum %d, bad %d, largest %d, first %d)", number,
                  static_cast<int>(ours.stats[0] == cpu.stats[0]), static_cast<int>(ours.stats[1] == cpu.stats[1]),
                  static_cast<int>(ours.stats[2] == cpu.stats[2]), static_cast<int>(ours.stats[3] == cpu.stats[3]));
}

inline void one_step(check::Random& r, Rooms& rooms, int64_t longest, long number) {
    const Case c = random_case(r, longest);
    const int level = static_cast<int>(r.next() % revstep::isa_levels().size());
    const Result cpu = run(r, rooms, c, c.source, nullptr, level), ours = run(r, rooms, c, c.source, nullptr, -1);
    compare(c, ours, cpu, "the step", number);
    ++count().launches;
    if (c.bits != 0 && !c.keeps_carry) return;
    const Result back = run(r, rooms, c, cpu.out, &cpu.carry, level), undone = run(r, rooms, c, cpu.out, &cpu.carry, -1);
    compare(c, undone, back, "the inverse", number);
    ++count().launches;
    if (fixed(c.state) && cpu.stats[1] == 0) same(undone.out, c.source, c.state, "the round trip", number);
}

}  // namespace trial
