# Can another project use carve, installed or as a subdirectory?  Each test
# configures, builds and runs the project in tests/consumer.
set(carve_consumer_dir ${PROJECT_BINARY_DIR}/tests/consumer)

# carve_consumer_test(<test> <executable> <option>...)
function(carve_consumer_test test executable)
  add_test(
    NAME ${test}
    COMMAND
      ${CMAKE_CTEST_COMMAND} --build-and-test
      ${PROJECT_SOURCE_DIR}/tests/consumer ${carve_consumer_dir}/${test}
      --build-generator ${CMAKE_GENERATOR} --build-target ${executable}
      --build-options -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}
      -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
      -DCMAKE_CXX_FLAGS=${CMAKE_CXX_FLAGS}
      -DCMAKE_CXX_FLAGS_DEBUG=${CMAKE_CXX_FLAGS_DEBUG} ${ARGN}
      --test-command ${executable})
endfunction()

# A fresh tree each time: a header that is no longer installed must be missed.
add_test(NAME install COMMAND
  ${CMAKE_COMMAND} -D build=${PROJECT_BINARY_DIR}
                   -D prefix=${carve_consumer_dir}/installed
                   -P ${CMAKE_CURRENT_LIST_DIR}/install_afresh.cmake)
set_tests_properties(install PROPERTIES FIXTURES_SETUP carve_installed)

set(carve_installed -DCMAKE_PREFIX_PATH=${carve_consumer_dir}/installed)
carve_consumer_test(find_package_headers with_headers ${carve_installed})
carve_consumer_test(find_package_reference with_reference ${carve_installed})
set_tests_properties(find_package_headers find_package_reference
                     PROPERTIES FIXTURES_REQUIRED carve_installed)

# Headers only: a second build of the whole library would tell nothing new.
carve_consumer_test(add_subdirectory_headers with_headers
                    -DCARVE_SUBDIRECTORY=${PROJECT_SOURCE_DIR})
