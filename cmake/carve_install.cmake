# What does an installed carve consist of?  Headers, the library, the program
# and the package files behind find_package(carve).
include(CMakePackageConfigHelpers)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/carve
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS carve_headers carve_reference EXPORT carveTargets)
if(TARGET carve_program)
  install(TARGETS carve_program)
endif()

set(carve_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/carve)
install(
  EXPORT carveTargets
  NAMESPACE carve::
  DESTINATION ${carve_package_dir})
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/carveConfig.cmake.in
  ${PROJECT_BINARY_DIR}/carveConfig.cmake
  INSTALL_DESTINATION ${carve_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/carveConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/carveConfig.cmake
              ${PROJECT_BINARY_DIR}/carveConfigVersion.cmake
        DESTINATION ${carve_package_dir})
