#include "fibers.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

shim::Index threadIdx, blockIdx, blockDim, gridDim;

// What __shared__ becomes lies in a section of its own; these name its ends, and are null where there is none.
extern "C" __attribute__((weak)) unsigned char __start_shim_shared[], __stop_shim_shared[];

// Keeps the registers that a called function must keep, and the stack, and goes on with another one's.
extern "C" void shim_switch(void** kept, void* next);
asm(R"(
.text
.p2align 4
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");

namespace shim {
namespace {

constexpr size_t kStack = size_t{1} << 16;
constexpr unsigned kMaxThreads = 1024;

struct Fiber {
    void* at = nullptr;       // of the stack, while it waits
    void* fake = nullptr;     // what AddressSanitizer keeps of it
    unsigned index = 0;
    uint64_t result = 0;
};

// A place where threads meet, of a warp or of the block.
struct Meeting {
    Call call = Call::none;
    unsigned mask = 0;
    int argument = 0;
    std::vector<unsigned> here;  // threads
    uint64_t value[kWarp] = {};
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<unsigned> ready;
    std::vector<Meeting> warps;
    std::vector<unsigned> alive;  // lanes of each warp that have not returned
    Meeting all;
    unsigned living = 0;
};

Block block;
Fiber* current = nullptr;
void* scheduler = nullptr;
std::string failure;
void (*body_now)(const void*) = nullptr;
const void* what_now = nullptr;
uint64_t state = 0;
std::mutex one_launch;

uint64_t random() {  // splitmix64
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Stacks with a page before each that cannot be touched.
unsigned char* stack_of(unsigned index) {
    static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), each = kStack + page;
    static unsigned char* const base = [] {
        void* p = mmap(nullptr, kMaxThreads * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) throw std::runtime_error("shim: no memory for the stacks of the fibers");
        for (unsigned i = 0; i < kMaxThreads; ++i)
            if (mprotect(static_cast<unsigned char*>(p) + i * each, page, PROT_NONE) != 0) throw std::runtime_error("shim: no guard page");
        return static_cast<unsigned char*>(p);
    }();
    return base + index * each + page;
}

#if defined(__SANITIZE_ADDRESS__)
const void* main_bottom = nullptr;
size_t main_size = 0;
#endif

void to_scheduler(bool for_ever) {
    Fiber* self = current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &self->fake, main_bottom, main_size);
#else
    (void)for_ever;
#endif
    shim_switch(&self->at, scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self->fake, nullptr, nullptr);
#endif
}

void resume(Fiber& f) {
    current = &f;
    threadIdx.x = f.index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_of(f.index), kStack);
#endif
    shim_switch(&scheduler, f.at);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    current = nullptr;
}

[[noreturn]] void fail(const char* sentence) {  // whoever calls is left as it is: it may own nothing
    failure = "shim: " + place() + ": " + sentence;
    for (;;) to_scheduler(true);
}

uint64_t result_of(const Meeting& m, unsigned lane, unsigned here) {
    if (m.call == Call::ballot) {
        uint64_t word = 0;
        for (unsigned l = 0; l < kWarp; ++l)
            if ((here >> l & 1u) != 0 && m.value[l] != 0) word |= uint64_t{1} << l;
        return word;
    }
    if (m.call != Call::shuffle_down) return 0;
    const unsigned from = lane + static_cast<unsigned>(m.argument);
    if (from >= kWarp) return m.value[lane];
    return (here >> from & 1u) != 0 ? m.value[from] : random();
}

void release(Meeting& m) {
    unsigned here = 0;
    if (m.call != Call::sync_block)
        for (const unsigned t : m.here) here |= 1u << t % kWarp;
    for (const unsigned t : m.here) {
        block.fibers[t].result = result_of(m, t % kWarp, here);
        block.ready.push_back(t);
    }
    m.here.clear();
    m.call = Call::none;
}

// Whoever has returned is waited for no more.
void release_complete(unsigned warp) {
    Meeting& m = block.warps[warp];
    if (!m.here.empty() && m.here.size() == static_cast<size_t>(__builtin_popcount(m.mask & block.alive[warp]))) release(m);
    if (!block.all.here.empty() && block.all.here.size() == block.living) release(block.all);
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom, &main_size);
#endif
    body_now(what_now);
    const unsigned t = current->index, warp = t / kWarp;
    block.alive[warp] &= ~(1u << t % kWarp);
    --block.living;
    release_complete(warp);
    to_scheduler(true);
}

void prepare(unsigned threads) {
    block.fibers.assign(threads, {});
    block.warps.resize((threads + kWarp - 1) / kWarp);
    block.alive.assign(block.warps.size(), 0u);
    block.living = threads;
    block.ready.clear();
    block.all.here.clear();
    block.all.call = Call::none;
    for (Meeting& m : block.warps) {
        m.here.clear();
        m.call = Call::none;
    }
    for (unsigned t = 0; t < threads; ++t) {
        Fiber& f = block.fibers[t];
        unsigned char* stack = stack_of(t);
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(stack, kStack);
#endif
        void** top = reinterpret_cast<void**>(stack + kStack) - 8;  // six registers, where to begin, nowhere to return to
        std::fill(top, top + 8, nullptr);
        top[6] = reinterpret_cast<void*>(&entry);
        f.at = top;
        f.index = t;
        block.ready.push_back(t);
        block.alive[t / kWarp] |= 1u << t % kWarp;
    }
}

std::string waiting() {
    std::string who;
    for (const Meeting& m : block.warps)
        if (!m.here.empty()) who += " " + std::to_string(m.here.size()) + " lanes with thread " + std::to_string(m.here[0]) + " in a warp's call;";
    if (!block.all.here.empty()) who += " " + std::to_string(block.all.here.size()) + " threads in __syncthreads;";
    return who;
}

void run_block(unsigned index, unsigned threads) {
    blockIdx.x = index;
    prepare(threads);
    const ptrdiff_t shared = __stop_shim_shared - __start_shim_shared;
    if (shared > 0) std::memset(__start_shim_shared, static_cast<int>(random() & 0xff), static_cast<size_t>(shared));
    while (block.living > 0) {
        if (block.ready.empty()) throw std::logic_error("shim: block " + std::to_string(index) + ": for ever" + waiting());
        const size_t which = random() % block.ready.size();
        const unsigned t = block.ready[which];
        block.ready[which] = block.ready.back();
        block.ready.pop_back();
        resume(block.fibers[t]);
        if (!failure.empty()) throw std::logic_error(failure);
    }
}

}  // namespace

Settings& settings() {
    static Settings all;
    return all;
}

std::string place() { return "block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(threadIdx.x); }

void run(unsigned blocks, unsigned threads, void (*body)(const void*), const void* what) {
    const std::lock_guard<std::mutex> lock(one_launch);
    if (blocks == 0 || threads == 0 || threads > kMaxThreads) throw std::logic_error("shim: a grid of no blocks or threads");
    body_now = body;
    what_now = what;
    failure.clear();
    state = settings().seed++;
    gridDim.x = blocks;
    blockDim.x = threads;
    std::vector<unsigned> order = settings().only;
    if (order.empty()) {
        order.resize(blocks);
        std::iota(order.begin(), order.end(), 0u);
    }
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    for (const unsigned index : order) run_block(index, threads);
}

uint64_t meet(Call call, unsigned mask, uint64_t value, int argument) {
    const unsigned t = current->index, lane = t % kWarp, warp = t / kWarp;
    const bool whole = call == Call::sync_block;
    Meeting& m = whole ? block.all : block.warps[warp];
    if (!whole && (mask >> lane & 1u) == 0) fail("the mask leaves out the lane that calls");
    if (m.here.empty()) {
        m.call = call;
        m.mask = mask;
        m.argument = argument;
    } else if (m.call != call || m.mask != mask || m.argument != argument) {
        fail("lanes of a warp meet in different calls");
    }
    m.here.push_back(t);
    if (!whole) m.value[lane] = value;
    release_complete(warp);
    to_scheduler(false);
    return block.fibers[t].result;
}

}  // namespace shim
