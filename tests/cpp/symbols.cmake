# A kernel object may define nothing but its own `body`: anything weak could be merged with a copy compiled for
# another instruction set.
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} -g --defined-only ${object} OUTPUT_VARIABLE symbols RESULT_VARIABLE status OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${NM} failed on ${object}")
  endif()
  string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
  list(LENGTH lines count)
  if(NOT count EQUAL 1 OR NOT symbols MATCHES "isa_[a-z0-9]+(4body|8ode_body|9look_body)E$")
    message(FATAL_ERROR "${object} defines more than its body:\n${symbols}")
  endif()
endforeach()
