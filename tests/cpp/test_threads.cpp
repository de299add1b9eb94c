// Every kernel and integration loop on several threads: the bits are those of one thread. Built with the thread sanitizer
// (REVSTEP_SANITIZE=THREAD) it also finds what two threads touch without an order between them, as the mutants of
// threads.cmake must show it.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "kernels/look.hpp"
#include "ode_case.hpp"

using namespace revstep;

namespace {

typedef std::vector<unsigned char> Bytes;

constexpr int kTeams[] = {2, 3, 5};
const DType kValues[] = {DType::f32, DType::f64, DType::bf16, DType::f16}, kStates[] = {DType::i32, DType::i64, DType::f32, DType::f64};

size_t width(DType t) { return t == DType::bf16 || t == DType::f16 ? 2 : t == DType::f64 || t == DType::i64 ? 8 : 4; }
bool fixed(DType t) { return t == DType::i32 || t == DType::i64; }

Bytes numbers(check::Random& r, DType t, int64_t n) {
    Bytes b(static_cast<size_t>(n) * width(t));
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        const double x = (r.unit() - 0.5) * 4;
        const float single = static_cast<float>(x);
        const uint16_t code = static_cast<uint16_t>((r.next() % 0x4000u) | (r.next() & 0x8000u));
        const int64_t whole = r.between(-(1 << 26), 1 << 26);
        unsigned char* at = &b[i * width(t)];
        if (t == DType::f64) std::memcpy(at, &x, 8);
        else if (t == DType::f32) std::memcpy(at, &single, 4);
        else if (fixed(t)) std::memcpy(at, &whole, width(t));  // the low bits
        else std::memcpy(at, &code, 2);
    }
    return b;
}

int bits_for(double alpha) {
    int b = 0;
    for (double a = std::fabs(alpha); a < 1.0; a *= 2.0) ++b;
    return b;
}

// What a launch wrote.
struct Written {
    Bytes out, view;
    std::vector<uint32_t> carry;
    int64_t stats[4] = {};
    bool operator==(const Written& o) const { return out == o.out && view == o.view && carry == o.carry && std::memcmp(stats, o.stats, sizeof stats) == 0; }
};

struct Case {
    int64_t n, row_length;
    DType state, value, view;
    double alpha, beta;
    Bytes source, cur, f;
    std::vector<uint8_t> choice;

    explicit Case(check::Random& r) {
        // What more than one thread takes, whole tiles or not.
        static const int64_t lengths[] = {32768, 40003, 65536 + 37, 81920};
        static const double alphas[] = {1.0, -1.0, 0.5, -0.25, 0x1p-8, 1.5};
        n = lengths[r.next() % 4];
        row_length = n % 64 == 0 && r.next() % 2 == 0 ? 64 : 0;
        state = kStates[r.next() % 4], value = kValues[r.next() % 4], view = kValues[r.next() % 4];
        alpha = alphas[r.next() % 6];
        beta = r.next() % 2 == 0 ? 0.0 : 1.0 - alpha;
        source = numbers(r, state, n), cur = numbers(r, state, n), f = numbers(r, value, n);
        if (row_length != 0) choice.resize(static_cast<size_t>(n / row_length));
        for (uint8_t& c : choice) c = static_cast<uint8_t>(r.next() & 1);
    }
    int carries() const { return fixed(state) ? bits_for(alpha) : 0; }

    Written run(const Bytes& from, const std::vector<uint32_t>* carry, int threads, Isa isa) const {
        Written w;
        w.out.resize(from.size()), w.view.resize(static_cast<size_t>(n) * width(view));
        w.carry = carry != nullptr ? *carry : std::vector<uint32_t>(static_cast<size_t>((n + 31) / 32 * carries()));
        StepArgs s{n, from.data(), beta != 0.0 ? cur.data() : nullptr, f.data(), w.out.data(), w.view.data(), carries() != 0 ? w.carry.data() : nullptr, w.stats,
                   state, value, view, alpha, beta, 0.37, fixed(state) ? 20 : 0, carries()};
        if (row_length != 0) s.choice = choice.data(), s.row_length = row_length, s.alpha1 = alpha, s.beta1 = beta, s.gamma1 = 0.75;
        (carry != nullptr ? inverse_cpu : step_cpu)(s, threads, isa);
        return w;
    }
};

void steps(check::Random& r) {
    const Case c(r);
    const Written next = c.run(c.source, nullptr, 1, Isa::generic), prev = c.run(next.out, &next.carry, 1, Isa::generic);
    for (const Isa isa : ode_case::levels())
        for (const int threads : kTeams) {
            check::expect(c.run(c.source, nullptr, threads, isa) == next, "step of %lld on %d threads", static_cast<long long>(c.n), threads);
            check::expect(c.run(next.out, &next.carry, threads, isa) == prev, "inverse of %lld on %d threads", static_cast<long long>(c.n), threads);
        }
}

void others(check::Random& r) {
    const Case c(r);
    const DType last = kValues[r.next() % 4];
    const size_t n = static_cast<size_t>(c.n);
    const auto run = [&](int threads) {
        Written w, scaled[2];
        w.out.resize(n * width(c.state)), w.view.resize(n * width(c.view));
        encode_cpu({c.n, c.f.data(), w.out.data(), w.view.data(), w.stats, c.value, c.state, c.view, 12}, threads, Isa::best);
        Bytes again(w.view.size());
        decode_cpu({c.n, w.out.data(), again.data(), c.state, c.view, 12}, threads, Isa::best);
        check::expect(again == w.view, "decode on %d threads gives the view of encode", threads);
        const DecodeArgs look{c.n, w.out.data(), again.data(), c.state, c.view, 12};
        check::expect(differs_cpu(look, threads, Isa::best) == 0, "no element of it differs");
        for (size_t i = 0; i < n; i += 1000) again[i * width(c.view)] ^= 1;
        check::expect(differs_cpu(look, threads, Isa::best) == static_cast<int64_t>((n + 999) / 1000), "elements that differ, counted on %d threads", threads);
        checksum_cpu({c.n, w.out.data(), scaled[0].stats, c.state}, threads, Isa::best);
        check::expect(scaled[0].stats[0] == w.stats[0], "checksum on %d threads is that of encode", threads);
        scaled[0].out.resize(n * width(c.value)), scaled[1].out.resize(n * width(last));
        scale_cpu({c.n, c.f.data(), {scaled[0].out.data(), scaled[1].out.data()}, 2, c.value, last, {0.3, -1.7}}, threads, Isa::best);
        w.out.insert(w.out.end(), scaled[0].out.begin(), scaled[0].out.end());
        w.out.insert(w.out.end(), scaled[1].out.begin(), scaled[1].out.end());
        return w;
    };
    const Written one = run(1);
    for (const int threads : kTeams) check::expect(run(threads) == one, "encode, decode, checksum and scale on %d threads", threads);
}

// Enough work for threads; with what a run notices of itself, and with systems that fail.
void integrations(const ode_case::Kind& kind, const ode_case::Program& program, bool is_fixed) {
    const int64_t a_step = 67 * kind.dim * static_cast<int64_t>(program.micros.size()) / static_cast<int64_t>(program.counts.size());
    const auto run = [&](int threads, bool undo) {
        ode_case::Run r(kind, program, 67, 220000 / a_step + 1, is_fixed);
        r.threads = threads;
        r.bad.assign(67, -1), r.bad_value.assign(67, 0.0);
        if (is_fixed)
            for (std::vector<int64_t>& w : r.watch) w.assign(static_cast<size_t>(67 * kind.dim), 0);
        r.go(false);
        if (undo) r.go(true);
        return r;
    };
    for (const bool undo : {false, true}) {
        const ode_case::Run one = run(1, undo);
        for (const int threads : {2, 5}) {
            const ode_case::Run many = run(threads, undo);
            bool same = one.same(many) && one.carry == many.carry && one.bad == many.bad && one.result.largest == many.result.largest && one.result.evaluations == many.result.evaluations;
            for (int k = 0; k < 4; ++k) same = same && one.watch[k] == many.watch[k];
            check::expect(same, "%s, undo %d, on %d threads", one.name().c_str(), undo, threads);
        }
    }
}

}  // namespace

int main() {
    check::Random r{2026};
    for (int trial = 0; trial < 12; ++trial) steps(r), others(r);
    const std::vector<ode_case::Kind> kinds = ode_case::kinds();
    const std::vector<ode_case::Program> programs = ode_case::programs();
    for (size_t k = 0; k < kinds.size(); ++k)  // every field, every program
        for (const bool is_fixed : {true, false}) integrations(kinds[k], programs[k % programs.size()], is_fixed);
    return check::finish("test_threads");
}
