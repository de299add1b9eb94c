// The shim itself: what a lane gets from the others, who waits for whom, what is refused, and that orders differ.
#include <cuda_runtime.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../check.hpp"

namespace {

constexpr unsigned kAll = 0xffffffffu;

struct Out {
    uint64_t* at;
};

template <class Kernel>
std::string launch(Kernel kernel, std::vector<uint64_t>& out, unsigned threads = 64) {
    Out args{out.data()};
    void* list[] = {&args};
    try {
        cudaLaunchKernel(static_cast<void (*)(Out)>(kernel), dim3(1), dim3(threads), list, 0, nullptr);
    } catch (const std::logic_error& e) {
        return e.what();
    }
    return "";
}

void says(const std::string& got, const char* part) { check::expect(got.find(part) != std::string::npos, "'%s' does not say '%s'", got.c_str(), part); }

void values() {
    std::vector<uint64_t> out(64);
    says(launch(+[](Out o) { o.at[threadIdx.x] = __ballot_sync(kAll, threadIdx.x % 3 == 0); }, out), "");
    for (unsigned t = 0; t < 64; ++t) {
        uint64_t word = 0;
        for (unsigned l = 0; l < 32; ++l) word |= uint64_t{(t / 32 * 32 + l) % 3 == 0} << l;
        check::expect(out[t] == word, "ballot of thread %u", t);
    }
    launch(+[](Out o) { o.at[threadIdx.x] = __shfl_down_sync(kAll, threadIdx.x * 7ull, 5); }, out);
    for (unsigned t = 0; t < 64; ++t) check::expect(out[t] == (t % 32 + 5 < 32 ? t + 5 : t) * 7ull, "shuffle of thread %u", t);
}

void returned() {
    std::vector<uint64_t> out(64, 1);
    // Lanes that have returned are not waited for; what they would have given is noise.
    says(launch(+[](Out o) {
        if (threadIdx.x % 32 >= 16) return;
        o.at[threadIdx.x] = __ballot_sync(kAll, 1);
        o.at[threadIdx.x + 16] = __shfl_down_sync(kAll, 5ull, 16);
        __syncthreads();
    }, out, 32), "");
    long fives = 0;
    for (unsigned t = 0; t < 16; ++t) {
        check::expect(out[t] == 0xffffu, "the ballot of those who are left, thread %u", t);
        fives += out[t + 16] == 5;
    }
    check::expect(fives == 0, "%ld lanes got a value from one that had returned", fives);
}

void refused() {
    std::vector<uint64_t> out(64);
    says(launch(+[](Out) { __ballot_sync(0xffu, 1); }, out), "leaves out");
    says(launch(+[](Out) { if (threadIdx.x == 3) __syncwarp(); else __ballot_sync(kAll, 1); }, out), "different calls");
    says(launch(+[](Out) { if (threadIdx.x < 8) __syncthreads(); else __syncwarp(); }, out), "for ever");
    says(launch(+[](Out) { __syncthreads(); }, out), "");  // and the next launch is as good as any
}

std::vector<uint64_t> order(uint64_t seed) {
    std::vector<uint64_t> out(65);
    shim::settings().seed = seed;
    launch(+[](Out o) { o.at[o.at[64]++] = threadIdx.x; }, out);
    out.pop_back();
    return out;
}

void orders() {
    check::expect(order(1) == order(1), "one seed gives two orders");
    check::expect(order(1) != order(2), "two seeds give one order");
    std::vector<uint64_t> seen = order(3);
    long repeated = 0;
    std::array<bool, 64> met{};
    for (const uint64_t t : seen) repeated += std::exchange(met[t], true);
    check::expect(repeated == 0, "a thread ran twice");
}

// Shared memory begins as anything.
__global__ void reads_shared(Out o) {
    __shared__ unsigned long long kept[64];
    o.at[threadIdx.x] = kept[threadIdx.x];
    kept[threadIdx.x] = 77;
}

void shared() {
    std::vector<uint64_t> out(64);
    long left = 0;
    for (int k = 0; k < 4; ++k) {
        launch(&reads_shared, out);
        for (const uint64_t x : out) left += x == 77;
    }
    check::expect(left == 0, "%ld words of shared memory outlive their block", left);
}

}  // namespace

int main() {
    values();
    returned();
    refused();
    orders();
    shared();
    return check::finish("fibers");
}
