// OpenMP's regions by plain threads, for the thread sanitizer: it sees how these begin, wait and end, which it cannot see in
// libgomp (every barrier there would be reported as a race). The five functions are all that GCC asks for in the kernels;
// a sixth would be missed by the linker.
#include <mutex>
#include <thread>
#include <vector>

namespace {

thread_local int team = 1, rank = 0;

std::mutex& critical() {
    static std::mutex one;
    return one;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned count, unsigned) {
    const int before_team = team, before_rank = rank;
    const auto member = [=](int which) {
        team = static_cast<int>(count), rank = which;
        body(data);
    };
    std::vector<std::thread> others;
    for (unsigned i = 1; i < count; ++i) others.emplace_back(member, static_cast<int>(i));
    member(0);
    for (std::thread& other : others) other.join();
    team = before_team, rank = before_rank;
}

void GOMP_critical_name_start(void**) { critical().lock(); }
void GOMP_critical_name_end(void**) { critical().unlock(); }
int omp_get_num_threads() { return team; }
int omp_get_thread_num() { return rank; }
}
