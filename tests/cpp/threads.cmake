# The thread sanitizer looks at what several threads do, and at nothing else.
if(NOT OpenMP_CXX_FOUND)
  message(FATAL_ERROR "REVSTEP_SANITIZE=THREAD needs the threads of OpenMP: GCC on Linux, or REVSTEP_OPENMP=ON")
endif()
add_library(threads_objects OBJECT test_threads.cpp openmp_threads.cpp)
target_include_directories(threads_objects PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
target_link_libraries(threads_objects PRIVATE revstep_flags)
add_executable(test_threads $<TARGET_OBJECTS:threads_objects>)
target_link_libraries(test_threads PRIVATE revstep_kernels revstep_flags)
add_test(NAME test_threads COMMAND test_threads)

# What stands between the threads, taken away.
function(revstep_race name source found replaced)  # by name: an empty argument would be lost in ARGN
  revstep_broken(${name} threads_objects ${source} "${found}" "${replaced}" "ThreadSanitizer: data race")
  set_tests_properties(broken_${name} PROPERTIES ENVIRONMENT "TSAN_OPTIONS=halt_on_error=1")
endfunction()
revstep_race(unlocked_merge kernels/cpu.cpp "#pragma omp critical(revstep_merge)" "")
revstep_race(shares_overlap kernels/cpu.cpp "tiles * (rank + 1) / team * kTile)" "(tiles * (rank + 1) / team + 1) * kTile)")
revstep_race(unlocked_count kernels/look.cpp "reduction(+ : found)" "shared(found)")
revstep_race(unlocked_ode_merge ode/loop.cpp "#pragma omp critical(revstep_ode_merge)" "")
revstep_race(one_scratch ode/loop.cpp "memory.get() + room * rank" "memory.get()")
