// Chooses the instruction set, shares the tiles among threads, adds up.
#include <algorithm>
#include <initializer_list>
#include <stdexcept>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(REVSTEP_X86_LEVELS)
#include <cpuid.h>
#endif

#include "cpu_parts.hpp"

namespace revstep {
namespace {

[[maybe_unused]] constexpr int64_t kSerialBelow = 32768;
constexpr int64_t kMostThreads = 1024;  // the OpenMP runtime ends the process when it cannot have what it is asked for

#if defined(REVSTEP_X86_LEVELS)
bool all(unsigned word, std::initializer_list<int> bits) {
    return std::all_of(bits.begin(), bits.end(), [word](int bit) { return (word >> bit & 1u) != 0; });
}
#endif

int usable_levels() {
#if defined(REVSTEP_X86_LEVELS)
    // The processor itself is asked: __builtin_cpu_supports of Clang 14 does not know all of these by name, and
    // that of zig 0.17 denies everything.
    unsigned a = 0, b = 0, c = 0, d = 0, wide = 0, more = 0;
    if (__get_cpuid(0x80000001u, &a, &b, &more, &d) == 0) return 1;
    if (__get_cpuid_count(7, 0, &a, &wide, &c, &d) == 0) return 1;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !all(c, {27})) return 1;  // OSXSAVE: xgetbv may be asked
    unsigned kept = 0;  // the registers that the system keeps for a process
    __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
    // FMA, MOVBE, AVX, F16C; BMI, AVX2, BMI2; LZCNT; 16- and 32-byte registers.
    const bool v3 = all(c, {12, 22, 28, 29}) && all(wide, {3, 5, 8}) && all(more, {5}) && all(kept, {1, 2});
    // AVX-512 F, DQ, CD, BW, VL; masks and 64-byte registers.
    const bool v4 = v3 && all(wide, {16, 17, 28, 30, 31}) && all(kept, {5, 6, 7});
    return v4 ? 3 : v3 ? 2 : 1;
#else
    return 1;
#endif
}

const CpuBody& choose(Isa isa) {
    [[maybe_unused]] const int level = usable_level(isa);
#if defined(REVSTEP_X86_LEVELS)
    if (level == 2) return isa_v4::body;
    if (level == 1) return isa_v3::body;
#endif
    return isa_generic::body;
}

[[maybe_unused]] void merge(Partial& into, const Partial& part) {  // only threads have parts
    into.checksum += part.checksum;
    into.bad += part.bad;
    into.largest = std::max(into.largest, part.largest);
    if (part.first_bad >= 0 && (into.first_bad < 0 || part.first_bad < into.first_bad)) into.first_bad = part.first_bad;
}

template <class Args>
Partial run(void (*share)(const Args&, int64_t, int64_t, Partial&), const Args& args, int64_t n, int threads) {
    Partial total;
    const int64_t tiles = (n + kTile - 1) / kTile;
#if defined(_OPENMP)
    const int count = n < kSerialBelow ? 1 : static_cast<int>(std::min<int64_t>({threads, tiles, kMostThreads}));
    if (count > 1) {
#pragma omp parallel num_threads(count)
        {
            const int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
            const int64_t begin = tiles * rank / team * kTile, end = std::min(n, tiles * (rank + 1) / team * kTile);
            Partial mine;
            if (begin < end) share(args, begin, end, mine);
#pragma omp critical(revstep_merge)
            merge(total, mine);
        }
        return total;
    }
#else
    (void)threads;
    (void)tiles;
#endif
    if (n > 0) share(args, 0, n, total);
    return total;
}

void write(const Partial& p, int64_t* stats) {
    stats[0] = static_cast<int64_t>(p.checksum);
    stats[1] = p.bad;
    stats[2] = static_cast<int64_t>(bits_of(p.largest));
    stats[3] = p.first_bad;
}

void run_step(const StepArgs& args, bool inverse, int threads, Isa isa) {
    const StepPlan plan = make_plan(args, inverse);
    write(run(choose(isa).step, plan, args.n, threads), args.stats);
}

}  // namespace

std::vector<std::string> isa_levels() {
    static const char* const names[] = {"generic", "v3", "v4"};
    return std::vector<std::string>(names, names + usable_levels());
}

int usable_level(Isa isa) {
    static const int levels = usable_levels();
    const int level = isa == Isa::best ? levels - 1 : static_cast<int>(isa);
    if (level < 0 || level >= levels) throw std::invalid_argument("revstep kernel: this instruction set level is not usable here, see isa_levels()");
    return level;
}

void step_cpu(const StepArgs& args, int threads, Isa isa) { run_step(args, false, threads, isa); }
void inverse_cpu(const StepArgs& args, int threads, Isa isa) { run_step(args, true, threads, isa); }

void encode_cpu(const EncodeArgs& args, int threads, Isa isa) {
    check(args);
    write(run(choose(isa).encode, args, args.n, threads), args.stats);
}

void decode_cpu(const DecodeArgs& args, int threads, Isa isa) {
    check(args);
    run(choose(isa).decode, args, args.n, threads);
}

void checksum_cpu(const ChecksumArgs& args, int threads, Isa isa) {
    check(args);
    write(run(choose(isa).checksum, args, args.n, threads), args.stats);
}

void scale_cpu(const ScaleArgs& args, int threads, Isa isa) {
    check(args);
    run(choose(isa).scale, args, args.n, threads);
}

}  // namespace revstep
