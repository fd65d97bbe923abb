# Does each public header compile when it is the only one included, and without
# a warning?  The target carve_headers_alone answers it, and its files are what
# clang-tidy reads.
file(GLOB carve_public_headers CONFIGURE_DEPENDS
     RELATIVE ${PROJECT_SOURCE_DIR}/include/carve
     ${PROJECT_SOURCE_DIR}/include/carve/*.hpp
     ${PROJECT_SOURCE_DIR}/include/carve/*.h)
add_library(carve_headers_alone OBJECT EXCLUDE_FROM_ALL)
target_link_libraries(carve_headers_alone PRIVATE carve_headers)
target_compile_options(
  carve_headers_alone
  PRIVATE
    "$<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Wconversion;-Wsign-conversion;-Werror>"
)
foreach(header IN LISTS carve_public_headers)
  set(unit ${PROJECT_BINARY_DIR}/headers/${header}.cpp)
  file(CONFIGURE OUTPUT ${unit} CONTENT "#include <carve/${header}>\n")
  target_sources(carve_headers_alone PRIVATE ${unit})
endforeach()
# Part of every test run, or it would be forgotten.
add_test(NAME headers_alone COMMAND ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR}
                                    --target carve_headers_alone)
set_tests_properties(headers_alone PROPERTIES TIMEOUT 900)
