# How does a test come about?
#
#   carve_test(<name> <source>... [LIBRARIES <target>...])
#
# builds build/tests/<name> from the sources and Catch2's main, links the
# library to it and registers it with ctest as <name>.  A binary that finds no
# test to run fails.
carve_need(Catch2)

function(carve_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" LIBRARIES)
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY
                                           ${PROJECT_BINARY_DIR}/tests)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(
    ${name} PRIVATE CARVE_DUMPS="${PROJECT_SOURCE_DIR}/tests/dumps")
  target_link_libraries(${name} PRIVATE carve_reference Catch2::Catch2WithMain
                                        ${arg_LIBRARIES})
  # Compiling tests costs more than running them.
  target_compile_options(
    ${name}
    PRIVATE "$<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-O1>")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300
                       FAIL_REGULAR_EXPRESSION "No tests ran")
endfunction()
