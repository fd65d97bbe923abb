# Does each public header compile when it is the only one included?  The target
# carve_headers_alone answers it, and its files are what clang-tidy reads.
file(GLOB carve_public_headers CONFIGURE_DEPENDS
     RELATIVE ${PROJECT_SOURCE_DIR}/include/carve
     ${PROJECT_SOURCE_DIR}/include/carve/*.hpp
     ${PROJECT_SOURCE_DIR}/include/carve/*.h)
add_library(carve_headers_alone OBJECT EXCLUDE_FROM_ALL)
target_link_libraries(carve_headers_alone PRIVATE carve_headers)
foreach(header IN LISTS carve_public_headers)
  set(unit ${PROJECT_BINARY_DIR}/headers/${header}.cpp)
  file(CONFIGURE OUTPUT ${unit} CONTENT "#include <carve/${header}>\n")
  target_sources(carve_headers_alone PRIVATE ${unit})
endforeach()
