# Variants of our sources, broken on purpose: a test with one of them in the place of the library's own must say `expected`.
# A pattern that is no longer there is an error.
#
#   revstep_broken(name test-object-library csrc-file found replaced expected)
function(revstep_broken name objects source found replaced expected)
  file(READ "${PROJECT_SOURCE_DIR}/csrc/${source}" text)
  string(FIND "${text}" "${found}" place)
  if(place EQUAL -1)
    message(FATAL_ERROR "the variant ${name} finds nothing to break in csrc/${source}: ${found}")
  endif()
  string(REPLACE "${found}" "${replaced}" text "${text}")
  get_filename_component(folder "${source}" DIRECTORY)
  string(REGEX REPLACE "#include \"([a-z_]+\\.hpp)\"" "#include \"${folder}/\\1\"" text "${text}")
  string(REPLACE "#include \"../" "#include \"" text "${text}")
  set(broken "${CMAKE_CURRENT_BINARY_DIR}/broken_${name}.cpp")
  file(CONFIGURE OUTPUT "${broken}" CONTENT "@text@" @ONLY)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/${source}")

  # The linker takes nothing from the library's file of that name: all of its symbols are here.
  add_executable(broken_${name} "${broken}" $<TARGET_OBJECTS:${objects}>)
  target_link_libraries(broken_${name} PRIVATE revstep_kernels revstep_flags)
  if(OpenMP_CXX_FOUND)
    target_compile_options(broken_${name} PRIVATE ${OpenMP_CXX_FLAGS})
    if(NOT REVSTEP_SANITIZE STREQUAL THREAD)
      target_link_libraries(broken_${name} PRIVATE OpenMP::OpenMP_CXX)
    endif()
  endif()
  target_compile_definitions(broken_${name} PRIVATE $<$<BOOL:${REVSTEP_X86}>:REVSTEP_X86_LEVELS>)
  add_test(NAME broken_${name} COMMAND sh -c "\"$0\" || true" $<TARGET_FILE:broken_${name}>)  # ctest takes no abort for a pass
  set_tests_properties(broken_${name} PROPERTIES PASS_REGULAR_EXPRESSION "${expected}")
endfunction()
