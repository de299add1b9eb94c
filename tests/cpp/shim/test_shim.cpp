// The device kernels, run by the shim, against the CPU kernels: the same bits in random trials, beyond 2^32 elements, and
// after calls that fail.   test_shim [TRIALS [SEED [first]]], `first`: end with the first difference
#include <csignal>
#include <cstdlib>
#include <string>

#include <cuda_runtime.h>

#include "core/checksum.hpp"
#include "trial_other.hpp"
#include "trial_step.hpp"

using namespace revstep;

namespace {

constexpr int64_t kLongest = 9000;
constexpr size_t kRoom = kLongest + 64;

// An access beyond an array meets a page that cannot be touched: say whose it was.
void fault(int, siginfo_t* info, void*) {
    const std::string where = "FAILED: memory that is nobody's, " + shim::place() + ", address ";
    std::fprintf(stderr, "%s%p\n", where.c_str(), info->si_addr);
    std::_Exit(3);
}

void watch_faults() {
#if !defined(__SANITIZE_ADDRESS__)  // which has a handler that says more
    static unsigned char stack[1 << 16];
    stack_t s{};
    s.ss_sp = stack;
    s.ss_size = sizeof stack;
    sigaltstack(&s, nullptr);
    struct sigaction a{};
    a.sa_sigaction = &fault;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &a, nullptr);
    sigaction(SIGBUS, &a, nullptr);
#else
    (void)&fault;
#endif
}

void trials(long many, uint64_t seed, bool first) {
    trial::Rooms rooms(kRoom);
    trial::Few few(kRoom);
    for (long t = 0; t < many && !(first && check::failures() > 0); ++t) {
        check::Random r{seed + static_cast<uint64_t>(t)};
        shim::settings().seed = r.next();
        shim::settings().processors = static_cast<int>(r.between(1, 2));
        shim::settings().blocks_each = static_cast<int>(r.between(1, 3));
        trial::one_step(r, rooms, kLongest, t);
        if (t % 4 == 0) trial::one_coding(r, few, kLongest, t);
        if (t % 4 == 1) trial::one_scale(r, few, kLongest, t);
        if (t % 4 == 2) trial::one_sample(r, few, kLongest, t);
    }
    shim::settings() = {};
}

// ---- more than 2^32 elements -----------------------------------------------------------------------------------

// Address space, of which only what is touched becomes memory.
class Vast {
public:
    explicit Vast(int64_t bytes) : size_(static_cast<size_t>(bytes)) {
        p_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p_ == MAP_FAILED) throw std::runtime_error("no address space for 2^32 elements");
    }
    Vast(const Vast&) = delete;
    Vast& operator=(const Vast&) = delete;
    ~Vast() { munmap(p_, size_); }
    template <class T>
    T* as() const {
        return static_cast<T*>(p_);
    }

private:
    size_t size_;
    void* p_;
};

constexpr int64_t kVast = (int64_t{1} << 32) + 2000000;
// A grid of one turn, of which a few blocks run: what they leave must be what the CPU makes of these elements alone.
void beyond(int64_t kRow) {
    check::Random r{5};
    const int64_t rows = kVast / kRow, n = rows * kRow;
    const Vast source(4 * n), cur(4 * n), f(2 * n), out(4 * n), view(2 * n), carry(n / 8 + 64);
    std::vector<uint8_t> choice(static_cast<size_t>(rows));
    for (uint8_t& c : choice) c = static_cast<uint8_t>(r.next() % 2);
    int64_t stats[4], few_stats[4];
    StepArgs s{n, source.as<void>(), cur.as<void>(), f.as<void>(), out.as<void>(), view.as<void>(), carry.as<uint32_t>(), stats,
               DType::i32, DType::bf16, DType::bf16, 0.5, 0.5, 0.37, 20, 1};
    s.choice = choice.data();
    s.row_length = kRow;
    s.alpha1 = -1.0;
    s.beta1 = 2.0;
    s.gamma1 = 1.5;
    shim::Settings& set = shim::settings();
    set.processors = 1 << 26;  // a block for all
    constexpr int64_t kEach = 4096;  // no block has more, and it is a whole number of blocks
    const int64_t places[] = {0, (int64_t{1} << 31) / kEach, (n - 1) / kEach};
    for (const int64_t place : places) {
        const int64_t first = place * kEach, here = std::min(kEach, n - first);
        for (int64_t i = first; i < first + here; ++i) {
            source.as<int32_t>()[i] = static_cast<int32_t>(r.between(-(1 << 26), 1 << 26));
            cur.as<int32_t>()[i] = static_cast<int32_t>(r.between(-(1 << 26), 1 << 26));
            f.as<uint16_t>()[i] = static_cast<uint16_t>(0x3c00u + r.next() % 512);
        }
        source.as<int32_t>()[first + here - 1] = 2147483647;
        cur.as<int32_t>()[first + here - 1] = 2147483647;
        f.as<uint16_t>()[first + here - 1] = 0x7fc0;  // no number: found bad, at an index beyond 2^32 at last
        // Which blocks: a thread has some elements, and a launch says how many blocks that makes of all of them.
        set.only = {0};
        step_cuda(s, nullptr);
        const uint64_t alone = first == 0 ? 0 : static_cast<uint64_t>(stats[0]);
        const int64_t each = (n + gridDim.x - 1) / gridDim.x, block = (each + 255) / 256 * 256;
        check::expect(kEach % block == 0, "a block has %lld elements, which does not divide %lld", static_cast<long long>(block), static_cast<long long>(kEach));
        set.only.clear();
        // The first block runs always: it adds what the statistics begin without.
        if (first != 0) set.only.push_back(0);
        for (int64_t b = first / block; b <= (first + here - 1) / block; ++b) set.only.push_back(static_cast<unsigned>(b));
        step_cuda(s, nullptr);
        set.only.clear();
        // The CPU, element by element of the row's set, on a copy that begins at 0.
        uint64_t checksum = alone;
        int64_t wrong = 0;
        for (int64_t i = first; i < first + here; ++i) {
            const bool second = choice[static_cast<size_t>(i / kRow)] != 0;
            int32_t one = 0;
            uint16_t seen = 0;
            uint32_t word = 0;
            StepArgs e{1, source.as<int32_t>() + i, cur.as<int32_t>() + i, f.as<uint16_t>() + i, &one, &seen, &word, few_stats, DType::i32, DType::bf16,
                       DType::bf16, second ? s.alpha1 : s.alpha, second ? s.beta1 : s.beta, second ? s.gamma1 : s.gamma, 20, second ? 0 : 1};
            step_cpu(e, 1, Isa::generic);
            const uint32_t carried = carry.as<uint32_t>()[i / 32] >> (i % 32) & 1u;
            wrong += one != out.as<int32_t>()[i] || seen != view.as<uint16_t>()[i] || carried != (second ? 0u : word & 1u);
            checksum += checksum_term(bits_of(one), checksum_inner(static_cast<uint32_t>(i % kChecksumPeriod))) * checksum_outer(i);
        }
        check::real(wrong, "elements beyond 2^31");
        check::expect(static_cast<uint64_t>(stats[0]) == checksum, "the checksum at element %lld", static_cast<long long>(first));
        check::expect(stats[1] == 1 && stats[3] == first + here - 1, "the bad element at %lld is said to be at %lld", static_cast<long long>(first + here - 1),
                      static_cast<long long>(stats[3]));
    }
    set = {};
}

// ---- calls that fail -------------------------------------------------------------------------------------------

// Which runtime functions a launch calls is the kernel's affair: each must be heard, and none must be heard twice.
void failing() {
    int32_t state[100] = {}, out[100];
    float f[100] = {};
    int64_t stats[4];
    StepArgs s{};
    s.n = 100;
    s.source = state;
    s.value = f;
    s.out = out;
    s.stats = stats;
    s.state = DType::i32;
    s.alpha = 1.0;
    s.frac_bits = 20;
    const char* const functions[] = {"cudaLaunchKernel", "cudaMemsetAsync", "cudaGetDevice", "cudaDeviceGetAttribute", "cudaOccupancyMaxActiveBlocksPerMultiprocessor"};
    long heard = 0;
    for (const char* name : functions)
        for (int after = 0; after < 2; ++after) {
            shim::settings().failing = name;
            shim::settings().failing_after = after;
            try {
                step_cuda(s, nullptr);
            } catch (const std::runtime_error& e) {
                ++heard;
                check::expect(std::string(e.what()).find("invalid argument") != std::string::npos, "the sentence '%s' does not say why", e.what());
            }
            shim::settings() = {};
            check::expect(cudaPeekAtLastError() == cudaSuccess, "%s failed, and the next good launch of anybody would", name);
            try {
                step_cuda(s, nullptr);
                sample_cuda(sample_args(state, 4, {100}, {1}, 1, 0, stats), nullptr);
            } catch (const std::runtime_error& e) {
                check::expect(false, "a good launch after a failed %s: %s", name, e.what());
            }
        }
    check::expect(heard >= 4, "only %ld of the calls that failed were heard", heard);
}

void answers() {
    const auto said = [](const char* why, const std::string& expected) {
        const std::string status = cuda_status();
        check::expect(status == expected, "%s: '%s'", why, status.c_str());
        check::expect(cudaPeekAtLastError() == cudaSuccess, "%s: an answer was left behind as an error", why);
        shim::settings() = {};
    };
    said("with a device", "");
    check::expect(built_with_cuda() && cuda_device_count() == 1, "the device is not counted");
    shim::settings().no_device = true;
    check::expect(cuda_device_count() == 0, "devices where none is");
    said("without a device", "no CUDA device is visible");
    shim::settings().no_image = true;
    said("a device of another architecture",
         "these kernels were not compiled for the current device (no kernel image is available for execution on the device): build revstep for its architecture");
    shim::settings().failing = "cudaDriverGetVersion";
    said("without a driver", "no CUDA driver is installed");
}

}  // namespace

int main(int argc, char** argv) {
    watch_faults();
    const long many = argc > 1 ? std::atol(argv[1]) : 800;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    try {
        const bool first = argc > 3;
        trials(many, seed * 1000003, first);
        for (const int64_t row : {1000008, 1000003})  // by groups of 8, and one by one
            if (!first || check::failures() == 0) beyond(row);
        failing();
        answers();
    } catch (const std::logic_error& e) {
        check::expect(false, "%s", e.what());
    }
    const trial::Count& c = trial::count();
    std::printf("%ld launches, %ld arrays compared, %ld differ\n", c.launches, c.arrays, c.bad);
    return check::finish("shim");
}
