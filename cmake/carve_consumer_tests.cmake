# Can another project use carve, installed or as a subdirectory?  Each test
# configures, builds and runs the project in tests/consumer.
set(carve_consumer_dir ${PROJECT_BINARY_DIR}/tests/consumer)

# carve_consumer_test(<test> <target of carve> <option>...)
function(carve_consumer_test test use)
  add_test(
    NAME ${test}
    COMMAND
      ${CMAKE_CTEST_COMMAND} --build-and-test
      ${PROJECT_SOURCE_DIR}/tests/consumer ${carve_consumer_dir}/${test}
      --build-generator ${CMAKE_GENERATOR} --build-target consumer
      --build-options -DUSE=${use} -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}
      -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
      -DCMAKE_CXX_FLAGS=${CMAKE_CXX_FLAGS}
      -DCMAKE_CXX_FLAGS_DEBUG=${CMAKE_CXX_FLAGS_DEBUG} ${ARGN}
      --test-command
      sh -c "./consumer && if [ -e whose_code ]; then ./whose_code; fi")
endfunction()

# A fresh tree each time: a header that is no longer installed must be missed.
add_test(NAME install COMMAND
  ${CMAKE_COMMAND} -D build=${PROJECT_BINARY_DIR}
                   -D prefix=${carve_consumer_dir}/installed
                   -P ${CMAKE_CURRENT_LIST_DIR}/install_afresh.cmake)
set_tests_properties(install PROPERTIES FIXTURES_SETUP carve_installed)

set(carve_installed -DCMAKE_PREFIX_PATH=${carve_consumer_dir}/installed)
set(carve_uses carve reference)
if(CARVE_WITH_CUDA)
  list(APPEND carve_uses cuda)
endif()
if(TARGET carve_shared)
  list(APPEND carve_uses c)
endif()
foreach(use IN LISTS carve_uses)
  carve_consumer_test(find_package_${use} ${use} ${carve_installed})
  set_tests_properties(find_package_${use} PROPERTIES FIXTURES_REQUIRED
                                                      carve_installed)
endforeach()

# Headers only, and as if there were no Boost: a second build of the whole
# library would tell nothing new.
carve_consumer_test(
  add_subdirectory_headers carve -DCARVE_SUBDIRECTORY=${PROJECT_SOURCE_DIR}
  -DCMAKE_DISABLE_FIND_PACKAGE_Boost=ON)

# Under another standard there is one error, the one that says so.
add_test(NAME cxx17_is_refused
         COMMAND sh ${CMAKE_CURRENT_LIST_DIR}/cxx17_is_refused.sh
                 ${CMAKE_CXX_COMPILER} ${PROJECT_SOURCE_DIR}/include)
